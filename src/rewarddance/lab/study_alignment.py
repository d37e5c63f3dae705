"""`rewarddance study alignment`: ways to align a generator, side by side, with controls.

An arm is a recipe of `align`. Every arm is trained with the same seeds and measured by the oracle on the same prompts
and noises, where it has used up a budget of counted work, where its KL is that of another arm, or at its end. A study
of algorithms and a study of judges differ in their arms only (`recipes/tiny/study-*.yaml`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rewarddance.align.config import AlignConfig
from rewarddance.align.probes import judge_gold
from rewarddance.core.errors import ConfigError
from rewarddance.core.lock import folder_lock
from rewarddance.core.media import StoredMedia
from rewarddance.core.monitors import HackingMonitor, hacking_verdict
from rewarddance.core.progress import say
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import environment, same_settings, write_json
from rewarddance.core.statistics import paired_bootstrap
from rewarddance.core.task import Prompt, Task
from rewarddance.core.types import RewardModel
from rewarddance.evaluate.clips import clip_distance, criteria_of, gold_and_criteria, same_width
from rewarddance.evaluate.generator import (
    Array,
    Samples,
    answered_prompts,
    diversity_of_features,
    fixed_samples,
    right_media,
)
from rewarddance.evaluate.metrics import vendi_score
from rewarddance.evaluate.metrics.table import embed
from rewarddance.jobs.evaluate import features_id, task_features
from rewarddance.jobs.load import find, load_generator_of, load_judge, load_task, weights_id
from rewarddance.lab.alignment_arm import curve_point, train_arm
from rewarddance.lab.alignment_clips import CLIP_VERSION, VERDICTS, clip_values
from rewarddance.lab.alignment_config import AlignmentStudyConfig
from rewarddance.lab.alignment_figures import summarise, version_of
from rewarddance.lab.alignment_tables import alignment_tables
from rewarddance.lab.study_tables import as_markdown

SETTINGS = ("split", "second_seed", "every", "num_noises", "num_steps", "diversity_prompts", "diversity_noises")
"""Settings of the measurement, which all arms of a folder share."""
PAUSE = 2.0
"""Seconds between two looks at a start that another process measures."""
PICTURE_VERSION = 1
"""Version of the embedded world's pictures and of the oracle's values of them. Raise it when either changes; figures of
another version are measured again. Clips have `CLIP_VERSION`."""


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
    out.mkdir(parents=True, exist_ok=True)
    task = task_of(study)
    first = study.align_config(next(iter(study.arms)), study.seeds[0])
    settings = {key: getattr(study, key) for key in SETTINGS}
    settings |= {
        "second_seed": str(study.second_seed),
        "generator_sha256": weights_id(find(first.generator, "generator")),
        "guidance": first.measured_guidance,
    }
    same_settings(setting, settings, absent={"split": "that of an earlier version", "guidance": first.guidance})
    while not _is_measured(out / "start", task):
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
    figures["gold_name"] = task.gold_name
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


def task_of(study: AlignmentStudyConfig) -> Task:
    """The task of all arms."""
    return load_task(study.align_config(next(iter(study.arms)), study.seeds[0]).task)


def measured_sets(study: AlignmentStudyConfig, task: Task) -> dict[str, list[Prompt]]:
    """The prompts that a study measures by the name of their set; the first one is what arms are compared on."""
    if study.split == "development":
        return {"development": list(task.development()[:: study.every])}
    sets = {"benchmark": list(task.benchmark()[:: study.every])}
    if study.second_seed is not None:
        second = task.second_benchmark(study.second_seed)[:: study.every]
        if second:
            sets[f"second benchmark, seed {study.second_seed}"] = list(second)
    return sets


def _measure_start(study: AlignmentStudyConfig, config: AlignConfig, folder: Path) -> None:
    """Write the start's figures, and the samples of the first set, which judges compare the arms' samples with."""
    generator, task = _measured_generator(config), task_of(study)
    sets = measured_sets(study, task)
    gold: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for place, (name, prompts) in enumerate(sets.items()):
        samples = fixed_samples(generator, prompts, study.num_noises, study.num_steps, 0, title=f"start, {name}")
        values, criteria = gold_and_criteria(samples, task)
        gold[name] = values.tolist()
        if place == 0:
            pixels = torch.stack([m.to_bytes() for row in samples.media for m in row])
            save_file({"pictures": pixels}, folder / "pictures.safetensors")
            if criteria:
                figures |= _clip_figures(study, samples, criteria, task, "start", folder)
                figures["widths"] = _widths(study, generator, task)
    listed = {n: {"texts": [p.text for p in s], "categories": [p.category for p in s]} for n, s in sets.items()}
    figures |= {"prompts": listed, "gold": gold, "diversity": _spread(study, task, generator)}
    generator.guidance = config.guidance  # as the arms' curves are measured in training
    figures |= {"curve": curve_point(generator, task, study.num_steps), **_identity(task)}
    write_json(folder / "measured.json", figures)


def _measured_generator(config: AlignConfig, adapter: Path | None = None) -> Tunable:
    """The generator with the guidance scale at which its samples are measured."""
    return load_generator_of(config.model_copy(update={"guidance": config.measured_guidance}), adapter)


def _clip_figures(
    study: AlignmentStudyConfig, samples: Samples, criteria: Mapping[str, Array], task: Task, raters: str, start: Path
) -> dict[str, Any]:
    """`clip_values` of clips, and their distance to as many right clips (`clip_distance`)."""
    distance = clip_distance(samples, _right_features(study, samples, task, start), task_features(task))
    values = clip_values(samples, criteria, task.rate, raters)
    return {"clips": values | {"frechet": distance}}


def _right_features(study: AlignmentStudyConfig, samples: Samples, task: Task, start: Path) -> Array:
    """Features of as many right clips of the same prompts, (clips, D). They are kept beside the start's clips, so the
    study draws and embeds right clips once."""
    file = start / f"right-{CLIP_VERSION}-{features_id(task)}.json"
    if not file.is_file():
        right = right_media(task, samples.prompts, study.num_noises, 0, samples.media[0][0].fps)
        write_json(file, embed(task_features(task), right).tolist())
    return np.array(json.loads(file.read_text()), np.float64)


def _widths(study: AlignmentStudyConfig, generator: Tunable, task: Task) -> dict[str, float]:
    """Largest difference at which two clips of the start are "the same", by `clip_values`, on development prompts."""
    prompts = task.development()[:: study.every]
    samples = fixed_samples(generator, prompts, study.num_noises, study.num_steps, 2, title="start, development")
    values = clip_values(samples, criteria_of(samples, task), task.rate, "development")
    return {name: same_width(np.array(values[name])) for name in VERDICTS if name in values}


def _measure_once(study: AlignmentStudyConfig, config: AlignConfig, folder: Path, start: Path, sha256: str) -> None:
    """Write the figures of one mark. They are measured again if the features or the version have changed."""
    task = task_of(study)
    if _is_measured(folder, task):
        return
    generator, sets = _measured_generator(config, folder), measured_sets(study, task)
    gold: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    judge = load_judge(config.judge, precision=config.precision, compile=config.compile)
    criterion = config.criterion or judge.criterion
    for place, (name, prompts) in enumerate(sets.items()):
        title = f"{folder.parts[-3]}, {folder.name}, {name}"
        samples = fixed_samples(generator, prompts, study.num_noises, study.num_steps, 0, title=title)
        values, criteria = gold_and_criteria(samples, task)
        gold[name] = values.tolist()
        if place == 0:
            before = np.array(json.loads((start / "measured.json").read_text())["gold"][name])
            figures["proxy"] = _proxy(judge, criterion, samples, values, before, start, sha256)
            if criteria:
                figures |= _clip_figures(study, samples, criteria, task, folder.parts[-3], start)
    figures |= {"gold": gold, "diversity": _spread(study, task, generator), **_identity(task)}
    write_json(folder / "measured.json", figures)


def _identity(task: Task) -> dict[str, Any]:
    """What figures depend on besides the setting; figures of another identity are measured again."""
    version = {"picture_version": PICTURE_VERSION} if task.criteria is None else {"clip_version": CLIP_VERSION}
    return {"features": features_id(task), **version}


def _is_measured(folder: Path, task: Task) -> bool:
    file = folder / "measured.json"
    if not file.is_file():
        return False
    content = json.loads(file.read_text())
    return {"features": content["features"], **version_of(content)} == _identity(task)


def _spread(study: AlignmentStudyConfig, task: Task, generator: Tunable) -> dict[str, float]:
    """Diversity of several samples of a prompt: feature and pixel distance, and the mean Vendi score."""
    prompts = next(iter(measured_sets(study, task).values()))
    few = prompts[:: max(1, len(prompts) // study.diversity_prompts)][: study.diversity_prompts]
    samples = fixed_samples(generator, few, study.diversity_noises, study.num_steps, 1, title="diversity")
    features = task_features(task)
    embedded = [features(row) for row in samples.media]
    vendi = [vendi_score(own.double().cpu().numpy()) for own in embedded]
    return {**diversity_of_features(samples, embedded), "vendi": float(np.mean(vendi))}


def _proxy(
    judge: RewardModel, criterion: str, samples: Samples, gold: Array, before: Array, start: Path, sha256: str
) -> dict[str, Any]:
    """The judge's reward, its gap to the oracle, and a verdict on hacking.

    The gap is computed as in the probes of a run (`core/monitors`). The verdict is computed as in `evaluate`, from
    intervals.

    The judge's reward is P(better than the start's picture of the next noise). The start's own rewards are kept beside
    its pictures, by judge and criterion.
    """
    pixels = load_file(start / "pictures.safetensors")["pictures"]
    shape = (len(samples.prompts), len(samples.media[0]))
    stored = [StoredMedia(part, samples.media[0][0].fps) for part in torch.split(pixels, shape[1])]
    file = start / f"proxy-{sha256[:16]}-{re.sub(r'[^a-z0-9]+', '_', criterion.lower())}.json"
    if not file.is_file():
        write_json(file, _rewards(judge, criterion, Samples(samples.prompts, tuple(stored)), stored).tolist())
    proxy_before = np.array(json.loads(file.read_text()), np.float64)
    proxy = _rewards(judge, criterion, samples, stored)
    monitor = HackingMonitor()
    monitor.add(0, proxy_before, before)
    kept = answered_prompts(proxy) & answered_prompts(proxy_before)
    rise, gain = paired_bootstrap(proxy[kept], proxy_before[kept]), paired_bootstrap(gold[kept], before[kept])
    return {**monitor.add(1, proxy, gold), "verdict": hacking_verdict(rise, gain)}


@torch.no_grad()
def _rewards(judge: RewardModel, criterion: str, samples: Samples, start: Sequence[StoredMedia]) -> Array:
    """P(better than the start's picture of the next noise), (prompts, noises), NaN where the judge refuses."""
    prompts = [p for p, row in zip(samples.prompts, samples.media, strict=True) for _ in row]
    pictures = [m for row in samples.media for m in row]
    next_noises = [m for row in start for m in (*row[1:], row[0])]
    rewards = judge_gold(judge, criterion)(prompts, pictures, next_noises)
    return np.array(rewards).reshape(len(samples.prompts), -1)
