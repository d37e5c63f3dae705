"""`rewarddance study alignment`: does reward feedback help, and does the judge matter?

There are three arms for every seed: the recipe itself (`refl`), the same number of supervised steps (`sft`), and the
recipe with a judge that was trained on random labels (`shuffled`). The oracle measures all of them on the same prompts
and noises.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rewarddance.align.config import AlignConfig
from rewarddance.core.errors import ConfigError
from rewarddance.core.lock import folder_lock
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder, environment, same_settings, write_json
from rewarddance.core.statistics import bootstrap, paired_bootstrap, students_interval, two_way_bootstrap
from rewarddance.evaluate.generator import diversity, fixed_samples, measure
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.evaluate import features_id, task_features
from rewarddance.jobs.load import find, load_generator_of, load_judge, weights_id
from rewarddance.world.task import EmbeddedTask

Arm = Literal["refl", "sft", "shuffled"]
ARMS: tuple[Arm, ...] = ("refl", "sft", "shuffled")
Array = NDArray[np.float64]
TASK = EmbeddedTask()


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
    """Run what is missing under `out` and write `study.json`. Finished arms are kept, stopped ones are resumed.

    Several processes may work in one folder at the same time. Each takes an arm that no other process works on. The
    last process writes the figures of all arms.

    Returns:
        For every arm the gain over the start with its interval over prompts, by seed and together; the same with seeds
        resampled too, and Student's interval over seeds alone; the differences of `refl` to both controls; diversity as
        a share of the start's; the mean KL at the end of training, which tells whether an arm changed the generator;
        seconds of training.
    """
    if config.prompts is not None:
        raise ConfigError("study alignment: the oracle measures it on the embedded world's prompts; give no --prompts")
    if shuffled_judge is None and "shuffled" in arms:
        raise ConfigError("study alignment: the arm `shuffled` needs --shuffled-judge; --arms refl sft leaves it out")
    if config.algorithm != "refl":
        raise ConfigError(f"study alignment: compares reward feedback with its controls, not {config.algorithm}")
    out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"shuffled_judge": shuffled_judge, "num_noises": num_noises, "every": every}
    settings["judge_sha256"] = weights_id(find(config.judge, "judge"))
    same_settings(out / "setting.json", settings, config, free=frozenset({"seed"}))
    prompts = [p.text for p in TASK.benchmark()[::every]]
    _measure_once(out / "start", None, config, prompts, num_noises)
    for seed in seeds:
        for arm in arms:
            folder = out / f"{arm}-{seed}"
            with folder_lock(folder) as locked:
                if not locked:
                    say(f"{arm} seed {seed}: another process works on it")
                    continue
                if not (folder / "adapter" / "adapter.json").is_file():
                    _train(config, arm, seed, shuffled_judge, folder)
                _measure_once(folder, folder, config, prompts, num_noises)
    figures = {**summarise(out), **environment(), "config": config.model_dump(mode="json")}
    write_json(out / "study.json", figures)
    return figures


def _train(config: AlignConfig, arm: Arm, seed: int, shuffled_judge: str | None, folder: Path) -> None:
    name = shuffled_judge if arm == "shuffled" and shuffled_judge is not None else config.judge
    algorithm = "sft" if arm == "sft" else "refl"
    config = config.model_copy(update={"seed": seed, "judge": name, "algorithm": algorithm})
    generator = load_generator_of(config)
    judge = None if arm == "sft" else load_judge(name, precision=config.precision, compile=config.compile)
    resume = (folder / "run.json").is_file()
    align_generator(config, generator, judge, folder, task=TASK, resume=resume, title=f"{arm} seed {seed}")


def _measure_once(folder: Path, adapter: Path | None, config: AlignConfig, prompts: list[str], num_noises: int) -> None:
    """Write oracle values (prompts, noises) and diversity of one generator; again if the features have changed."""
    target, features = folder / "measured.json", features_id(TASK)
    if target.is_file() and json.loads(target.read_text()).get("features") == features:
        return
    folder.mkdir(exist_ok=True)
    generator = load_generator_of(config, adapter)
    few = prompts[:: max(1, len(prompts) // 60)][:60]
    steps = config.num_steps
    values = measure(fixed_samples(generator, prompts, num_noises, steps, 0, title=f"samples {folder.name}"), TASK)
    spread = diversity(fixed_samples(generator, few, 8, steps, 1), task_features(TASK))
    write_json(target, {"prompts": prompts, "gold": values.tolist(), "diversity": spread, "features": features})


def summarise(out: Path) -> dict[str, Any]:
    """Figures of the arms and seeds that are finished under `out`.

    A diversity that was measured with other features than the start's is left out.
    """
    start, spread, features = _read(out / "start")
    figures: dict[str, Any] = {"start": float(start.mean()), "arms": {}, "differences": {}}
    values: dict[str, dict[int, Array]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        ratios, seconds, kl = {}, {}, {}
        for folder in sorted(out.glob(f"{arm}-*")):
            if not (folder / "measured.json").is_file():
                continue
            seed = int(folder.name.rsplit("-", 1)[1])
            values[arm][seed], arm_spread, arm_features = _read(folder)
            if arm_features is not None and arm_features == features:
                ratios[seed] = arm_spread["feature"] / spread["feature"]
            else:
                say(
                    f"{folder.name}: its diversity was measured with other features than the start's; run its arm again"
                )
            lines = RunFolder(folder).metrics()
            seconds[seed] = lines[-1]["seconds"]
            kl[seed] = float(np.mean([m["kl"] for m in lines[-20:] if "kl" in m] or [0.0]))
        if values[arm]:
            further = {"feature_diversity_ratio": ratios, "kl": kl, "seconds": seconds}
            figures["arms"][arm] = _gain(values[arm], start) | further
    for control in ("sft", "shuffled"):
        both = sorted(values["refl"].keys() & values[control].keys())
        if both:
            gaps = [values["refl"][s] - values[control][s] for s in both]
            difference, over_seeds = bootstrap(np.concatenate(gaps, 1)), two_way_bootstrap(np.stack(gaps, 1))
            figures["differences"][control] = {
                **difference.as_dict(),
                "verdict": difference.verdict,
                "over_seeds": over_seeds.as_dict(),
            }
    return figures


def _gain(values: dict[int, Array], start: Array) -> dict[str, Any]:
    """Gain of one arm over the start, together and by seed."""
    gains = [v - start for v in values.values()]
    gain = bootstrap(np.concatenate(gains, 1))
    return {
        "gain": gain.as_dict() | {"verdict": gain.verdict},
        "gain_over_seeds": two_way_bootstrap(np.stack(gains, 1)).as_dict(),
        "gain_over_seeds_students_t": students_interval([float(g.mean()) for g in gains]),
        "by_seed": {s: paired_bootstrap(v, start).as_dict() for s, v in values.items()},
    }


def _read(folder: Path) -> tuple[Array, dict[str, float], str | None]:
    """Values, diversity, and the features that the diversity was measured with."""
    content = json.loads((folder / "measured.json").read_text())
    return np.array(content["gold"]), content["diversity"], content.get("features")
