"""`rewarddance study alignment`: does reward feedback help, and is it the judge's taste that helps?

Three arms, every seed: the recipe itself; `sft`, as many steps of supervised continuation; `shuffled`, the recipe
with a judge trained on labels at random. All are measured by the oracle on the same prompts and noises.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rewarddance.align.config import AlignConfig
from rewarddance.core.claim import claimed
from rewarddance.core.config import differing
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.progress import console, progress
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import RunFolder, environment, write_json
from rewarddance.core.statistics import bootstrap, over_runs, paired_bootstrap, two_way_bootstrap
from rewarddance.evaluate.generator import diversity, fixed_samples, measure
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.evaluate import features_id, gold, vision_features
from rewarddance.jobs.load import find, generator_of, load_judge, weights_id
from rewarddance.world.benchmark import benchmark_prompts

Arm = Literal["refl", "sft", "shuffled"]
ARMS: tuple[Arm, ...] = ("refl", "sft", "shuffled")
Array = NDArray[np.float64]


def study_alignment(
    config: AlignConfig,
    shuffled_judge: str | None,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    arms: Sequence[Arm] = ARMS,
    num_noises: int = 4,
    every: int = 1,
) -> dict[str, Any]:
    """Run what is missing under `out` (finished arms are kept, stopped ones resumed) and write `study.json`.

    Several processes may work in one folder at the same time: each takes what no other one is at. The last one to end
    writes the figures of all.

    Returns:
        Per arm the gain over the start with its interval over prompts, seed by seed and together; the same with seeds
        resampled too, and Student's interval over the seeds alone; the differences of `refl` to both controls;
        diversity as a share of the start's; the mean KL of the last lines of each log (a control that hardly moved
        shows only that moving gains); seconds of training.
    """
    if config.prompts is not None:
        raise ConfigError("study alignment: measures by the oracle, on the embedded world's prompts; give no --prompts")
    if shuffled_judge is None and "shuffled" in arms:
        raise ConfigError("study alignment: the arm `shuffled` needs --shuffled-judge; --arms refl sft leaves it out")
    out.mkdir(parents=True, exist_ok=True)
    _same_study(out / "setting.json", config, shuffled_judge, num_noises, every)
    chosen = [p for _, p in benchmark_prompts()[::every]]
    _measured(out / "start", None, config, chosen, num_noises)
    for seed in seeds:
        for arm in arms:
            folder = out / f"{arm}-{seed}"
            with claimed(folder) as mine:
                if not mine:
                    console.print(f"{arm} seed {seed}: another process is at work on it", highlight=False)
                    continue
                if not (folder / "adapter" / "adapter.json").is_file():
                    _train(config, arm, seed, shuffled_judge, folder)
                _measured(folder, folder, config, chosen, num_noises)
    found = {**summarise(out), **environment(), "config": config.model_dump(mode="json")}
    write_json(out / "study.json", found)
    return found


def _same_study(target: Path, config: AlignConfig, shuffled_judge: str | None, num_noises: int, every: int) -> None:
    """Refuse to mix arms of different settings in one folder.

    Raises:
        RunError: the folder holds a study of another setting.
    """
    settings: dict[str, Any] = {"shuffled_judge": shuffled_judge, "num_noises": num_noises, "every": every}
    settings["judge_sha256"] = weights_id(find(config.judge, "judge"))
    written = config.model_dump(mode="json", exclude={"seed"})
    before: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {**settings, "config": written}
    if shuffled_judge is None or before["shuffled_judge"] is None:  # the arm that it is for may come later
        settings["shuffled_judge"] = before["shuffled_judge"] = shuffled_judge or before["shuffled_judge"]
    other = differing(before.pop("config"), config, but_for={"": {"seed"}})
    if other or before != settings:
        other += [k for k in settings if before.get(k) != settings[k]]
        raise RunError(f"{target.parent}: holds a study of another setting ({', '.join(other)}); choose another --out")
    write_json(target, {**settings, "config": written})


def _train(config: AlignConfig, arm: Arm, seed: int, shuffled_judge: str | None, folder: Path) -> None:
    name = shuffled_judge if arm == "shuffled" and shuffled_judge is not None else config.judge
    mine = config.model_copy(update={"seed": seed, "judge": name, "algorithm": "sft" if arm == "sft" else "refl"})
    generator = generator_of(mine)
    asked = None if arm == "sft" else load_judge(name, precision=mine.precision, image_cache=mine.num_prompts)
    resume = (folder / "run.json").is_file()
    align_generator(mine, generator, asked, folder, resume=resume, title=f"{arm} seed {seed}")


def _measured(folder: Path, adapter: Path | None, config: AlignConfig, prompts: list[str], num_noises: int) -> None:
    """Write oracle values (prompts, noises) and diversity of one generator, once; anew where features have changed."""
    target, features = folder / "measured.json", features_id()
    if target.is_file() and json.loads(target.read_text()).get("features") == features:
        return
    folder.mkdir(exist_ok=True)
    generator = generator_of(config, adapter)
    few = prompts[:: max(1, len(prompts) // 60)][:60]
    with progress(f"samples {folder.name}") as report:
        steps, precision = config.refl.num_steps, config.precision
        values = measure(fixed_samples(generator, prompts, num_noises, steps, 0, report, precision=precision), gold)
    spread = _spread(generator, few, config)
    found = {"prompts": prompts, "gold": values.tolist(), "diversity": spread, "features": features}
    write_json(target, found)


def _spread(generator: Tunable, prompts: list[str], config: AlignConfig) -> dict[str, float]:
    return diversity(
        fixed_samples(generator, prompts, 8, config.refl.num_steps, 1, precision=config.precision), vision_features()
    )


def summarise(out: Path) -> dict[str, Any]:
    """Figures of the arms and seeds that are finished under `out`.

    A diversity that was measured in other features than the start's has no ratio to it and is left out.
    """
    start, spread, features = _read(out / "start")
    found: dict[str, Any] = {"start": float(start.mean()), "arms": {}, "differences": {}}
    values: dict[str, dict[int, Array]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        ratios, seconds, kl = {}, {}, {}
        for folder in sorted(out.glob(f"{arm}-*")):
            if not (folder / "measured.json").is_file():
                continue
            seed = int(folder.name.rsplit("-", 1)[1])
            values[arm][seed], own, theirs = _read(folder)
            if theirs is not None and theirs == features:
                ratios[seed] = own["feature"] / spread["feature"]
            else:
                console.print(f"{folder.name}: its diversity is in other features than the start's; run its arm again")
            lines = RunFolder(folder).metrics()
            seconds[seed] = lines[-1]["seconds"]
            kl[seed] = float(np.mean([m["kl"] for m in lines[-20:] if "kl" in m] or [0.0]))
        if not values[arm]:
            continue
        gains = [v - start for v in values[arm].values()]
        gain = bootstrap(np.concatenate(gains, 1))
        by_seed = {s: paired_bootstrap(v, start).as_dict() for s, v in values[arm].items()}
        found["arms"][arm] = {
            "gain": gain.as_dict() | {"verdict": gain.verdict},
            "gain_over_seeds": two_way_bootstrap(np.stack(gains, 1)).as_dict(),
            "gain_over_seeds_students_t": over_runs([float(g.mean()) for g in gains]),
            "by_seed": by_seed,
            "feature_diversity_ratio": ratios,
            "kl": kl,
            "seconds": seconds,
        }
    for control in ("sft", "shuffled"):
        both = sorted(values["refl"].keys() & values[control].keys())
        if both:
            gaps = [values["refl"][s] - values[control][s] for s in both]
            difference, over_seeds = bootstrap(np.concatenate(gaps, 1)), two_way_bootstrap(np.stack(gaps, 1))
            found["differences"][control] = {
                **difference.as_dict(),
                "verdict": difference.verdict,
                "over_seeds": over_seeds.as_dict(),
            }
    return found


def _read(folder: Path) -> tuple[Array, dict[str, float], str | None]:
    """Values, diversity, and in which features it was measured."""
    content = json.loads((folder / "measured.json").read_text())
    return np.array(content["gold"]), content["diversity"], content.get("features")
