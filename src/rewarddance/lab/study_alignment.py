"""`rewarddance study alignment`: ways to align a generator, side by side, with controls.

An arm is a recipe of `align`. Every arm is trained with the same seeds and measured by the oracle on the same prompts
and noises, where it has used up a budget of counted work, where its KL is that of another arm, or at its end. A study
of algorithms and a study of judges differ in their arms only (`recipes/tiny/study-*.yaml`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rewarddance.align.config import AlignConfig
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.lock import folder_lock
from rewarddance.core.media import StoredMedia
from rewarddance.core.monitors import HackingMonitor
from rewarddance.core.progress import say
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import environment, same_settings, write_json
from rewarddance.core.task import Prompt
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.evaluate.generator import Array, Samples, diversity, fixed_samples, measure
from rewarddance.evaluate.metrics import vendi_score
from rewarddance.jobs.evaluate import features_id, task_features
from rewarddance.jobs.load import find, load_generator_of, load_judge, weights_id
from rewarddance.lab.alignment_arm import TASK, curve_point, train_arm
from rewarddance.lab.alignment_config import AlignmentStudyConfig
from rewarddance.lab.alignment_figures import summarise
from rewarddance.lab.alignment_tables import alignment_tables
from rewarddance.lab.study_tables import as_markdown

SETTINGS = ("split", "second_seed", "every", "num_noises", "num_steps", "diversity_prompts", "diversity_noises")
"""Settings of the measurement, which all arms of a folder share."""
PAUSE = 2.0
"""Seconds between two looks at a start that another process measures."""
AT_ONCE = 256
"""Comparisons of one call to a judge."""


def study_alignment(
    study: AlignmentStudyConfig, out: Path, *, seeds: Sequence[int] = (), arms: Sequence[str] = ()
) -> dict[str, Any]:
    """Train and measure what is missing under `out`, and write `study.json` and `table.md`.

    Finished arms are kept, stopped ones are resumed. Several processes may work in one folder at the same time: each
    takes an arm and seed that no other process works on. The last process writes the figures of all arms.

    Args:
        seeds, arms: those to run now; all of the study when empty.

    Returns:
        `alignment_figures.summarise`, with the configuration and the environment.

    Raises:
        ConfigError: an unknown arm, or a wrong configuration of one.
        RunError: the folder, or an arm in it, was made with other settings.
    """
    for name in arms:
        if name not in study.arms:
            raise ConfigError(f"study alignment: no arm {name!r}; known: {', '.join(study.arms)}")
    study.check()
    setting = out / "setting.json"
    if setting.is_file() and "split" not in json.loads(setting.read_text()):
        raise RunError(f"{out}: holds a study of an earlier version; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    first = study.align_config(next(iter(study.arms)), study.seeds[0])
    settings = {key: getattr(study, key) for key in SETTINGS}
    settings |= {
        "second_seed": str(study.second_seed),
        "generator_sha256": weights_id(find(first.generator, "generator")),
    }
    same_settings(setting, settings)
    while not _is_measured(out / "start"):
        with folder_lock(out / "start") as locked:
            if locked:
                _measure_start(study, first, out / "start")
        if not locked:
            time.sleep(PAUSE)  # another process measures it
    waiting = [(seed, arm) for seed in seeds or study.seeds for arm in study.arms if not arms or arm in arms]
    while waiting:
        left = [(seed, arm) for seed, arm in waiting if not _run_once(study, arm, seed, out)]
        if len(left) == len(waiting):
            for seed, arm in left:
                say(f"{arm} seed {seed}: needs the KL of {study.arms[arm].match_kl}, which is not finished; call again")
            break
        waiting = left
    figures = {**summarise(study, out), **environment(), "config": study.model_dump(mode="json")}
    write_json(out / "study.json", figures)
    (out / "table.md").write_text(as_markdown(alignment_tables(figures)))
    return figures


def _run_once(study: AlignmentStudyConfig, arm: str, seed: int, out: Path) -> bool:
    """Train and measure one run; False where it must wait for the KL of another arm."""
    folder, target = out / f"{arm}-{seed}", None
    if (other := study.arms[arm].match_kl) is not None:
        file = out / f"{other}-{seed}" / "marks" / study.marks(other)[0] / "mark.json"
        if not file.is_file():
            return False
        target = json.loads(file.read_text())["kl"]
    with folder_lock(folder) as locked:
        if not locked:
            say(f"{arm} seed {seed}: another process works on it")
            return True
        config, own, budget = study.align_config(arm, seed), study.arms[arm], study.budget_of(arm)
        settings: dict[str, Any] = {"judge_sha256": weights_id(find(config.judge, "judge"))}
        settings |= {"standardise": own.standardise, "match_kl": str(own.match_kl), "target_kl": target}
        settings["budget"] = "None" if budget is None else budget.limits
        same_settings(folder / "arm.json", settings, config)
        if not (folder / "adapter" / "adapter.json").is_file() or not all(
            (folder / "marks" / mark / "mark.json").is_file() for mark in study.marks(arm)
        ):
            train_arm(study, arm, seed, folder, target)
        for mark in study.marks(arm):
            _measure_once(study, config, folder / "marks" / mark, out / "start", settings["judge_sha256"])
    return True


def measured_sets(study: AlignmentStudyConfig) -> dict[str, list[Prompt]]:
    """The prompts that a study measures by the name of their set; the first one is what arms are compared on."""
    if study.split == "development":
        return {"development": list(TASK.development()[:: study.every])}
    sets = {"benchmark": list(TASK.benchmark()[:: study.every])}
    if study.second_seed is not None:
        sets[f"second benchmark, seed {study.second_seed}"] = list(
            TASK.second_benchmark(study.second_seed)[:: study.every]
        )
    return sets


def _measure_start(study: AlignmentStudyConfig, config: AlignConfig, folder: Path) -> None:
    """Write the start's figures, and the pictures of the first set, which judges compare the arms' pictures with."""
    generator, sets = load_generator_of(config), measured_sets(study)
    gold: dict[str, Any] = {}
    for place, (name, prompts) in enumerate(sets.items()):
        samples = fixed_samples(generator, prompts, study.num_noises, study.num_steps, 0, title=f"start, {name}")
        gold[name] = measure(samples, TASK).tolist()
        if place == 0:
            pixels = torch.cat([m.to_bytes() for row in samples.media for m in row])
            save_file({"pictures": pixels}, folder / "pictures.safetensors")
    asked = {n: {"texts": [p.text for p in s], "categories": [p.category for p in s]} for n, s in sets.items()}
    figures: dict[str, Any] = {"prompts": asked, "gold": gold, "diversity": _spread(study, generator)}
    figures |= {"curve": curve_point(generator, study.num_steps), "features": features_id(TASK)}
    write_json(folder / "measured.json", figures)


def _measure_once(study: AlignmentStudyConfig, config: AlignConfig, folder: Path, start: Path, sha256: str) -> None:
    """Write the figures of one mark. They are measured again if the features have changed."""
    if _is_measured(folder):
        return
    generator, sets = load_generator_of(config, folder), measured_sets(study)
    gold, proxy = {}, {}
    judge = load_judge(config.judge, precision=config.precision, compile=config.compile)
    criterion = config.criterion or judge.criterion
    for place, (name, prompts) in enumerate(sets.items()):
        title = f"{folder.parts[-3]}, {folder.name}, {name}"
        samples = fixed_samples(generator, prompts, study.num_noises, study.num_steps, 0, title=title)
        values = measure(samples, TASK)
        gold[name] = values.tolist()
        if place == 0:
            before = np.array(json.loads((start / "measured.json").read_text())["gold"][name])
            proxy = _proxy(judge, criterion, samples, values, before, start, sha256)
    figures = {"gold": gold, "proxy": proxy, "diversity": _spread(study, generator), "features": features_id(TASK)}
    write_json(folder / "measured.json", figures)


def _is_measured(folder: Path) -> bool:
    file = folder / "measured.json"
    return file.is_file() and json.loads(file.read_text())["features"] == features_id(TASK)


def _spread(study: AlignmentStudyConfig, generator: Tunable) -> dict[str, float]:
    """Diversity of several pictures of a prompt: feature and pixel distance, and the mean Vendi score."""
    prompts = next(iter(measured_sets(study).values()))
    few = prompts[:: max(1, len(prompts) // study.diversity_prompts)][: study.diversity_prompts]
    samples = fixed_samples(generator, few, study.diversity_noises, study.num_steps, 1, title="diversity")
    features = task_features(TASK)
    vendi = [vendi_score(features(row).double().cpu().numpy()) for row in samples.media]
    return {**diversity(samples, features), "vendi": float(np.mean(vendi))}


def _proxy(
    judge: RewardModel, criterion: str, samples: Samples, gold: Array, before: Array, start: Path, sha256: str
) -> dict[str, Any]:
    """The judge's reward, the gap to the oracle and the verdict, as the probes of a run have them (`core/monitors`).

    The judge's reward is P(better than the start's picture of the next noise). The start's own rewards are kept beside
    its pictures, by judge and criterion.
    """
    pixels = load_file(start / "pictures.safetensors")["pictures"]
    shape = (len(samples.prompts), len(samples.media[0]))
    stored = [StoredMedia(part, None) for part in torch.split(pixels, shape[1])]
    file = start / f"proxy-{sha256[:16]}-{re.sub(r'[^a-z0-9]+', '_', criterion.lower())}.json"
    if not file.is_file():
        write_json(file, _rewards(judge, criterion, Samples(samples.prompts, tuple(stored)), stored).tolist())
    monitor = HackingMonitor()
    monitor.add(0, np.array(json.loads(file.read_text()), np.float64), before)
    return monitor.add(1, _rewards(judge, criterion, samples, stored), gold)


@torch.no_grad()
def _rewards(judge: RewardModel, criterion: str, samples: Samples, start: Sequence[StoredMedia]) -> Array:
    """P(better than the start's picture of the next noise), (prompts, noises), NaN where the judge refuses."""
    comparisons = [
        Comparison.of(prompt, media, first[(place + 1) % len(row)], criterion)
        for prompt, row, first in zip(samples.prompts, samples.media, start, strict=True)
        for place, media in enumerate(row)
    ]
    parts = [judge.judge(comparisons[i : i + AT_ONCE]).win_rate for i in range(0, len(comparisons), AT_ONCE)]
    return torch.cat(parts).double().cpu().numpy().reshape(len(samples.prompts), -1)
