"""Figures of `study alignment` from its folders: gains, differences, and what they cost. Seeds are the units."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder
from rewarddance.core.statistics import bootstrap, smallest_difference, students_interval
from rewarddance.evaluate.generator import Array
from rewarddance.lab.alignment_clips import compare_clip_values
from rewarddance.lab.alignment_config import AlignmentStudyConfig, Mark

Measured = dict[int, dict[str, Any]]
"""`mark.json` and `measured.json` of one mark of an arm, as one mapping for each seed."""


def summarise(study: AlignmentStudyConfig, out: Path) -> dict[str, Any]:
    """Figures of the arms and seeds that are finished under `out`.

    Returns:
        start: mean of every set of prompts; start_curve: that of the development prompts; sets: number of prompts by
        category; marks: a row for every arm and mark (`_row`), in the study's order; curves: KL, work and the oracle's
        value on development prompts during training, by arm and seed.
    """
    start = json.loads((out / "start" / "measured.json").read_text())
    measured = {(arm, mark): _measured(out, arm, mark, start) for arm in study.arms for mark in study.marks(arm)}
    rows = []
    for (arm, mark), runs in measured.items():
        if runs:
            row = _row(runs, start) | {"arm": arm, "mark": mark, "matched": study.arms[arm].match_kl}
            if "widths" in start:
                clips = [run["clips"] for run in runs.values()]
                row["clips"] = compare_clip_values(clips, [start["clips"]] * len(clips), start["widths"])
            row["minus"] = [
                {"arm": base[0], "mark": base[1]} | _difference(runs, measured[base], seeds, start.get("widths"))
                for base in _baselines(study, arm, mark)
                if (seeds := sorted(runs.keys() & measured[base].keys()))
            ]
            rows.append(row)
    categories = {n: p["categories"] for n, p in start["prompts"].items()}
    return {
        "start": {name: float(np.mean(values)) for name, values in start["gold"].items()},
        "start_curve": start["curve"],
        "start_diversity": start["diversity"],
        "sets": {n: {c: of_set.count(c) for c in dict.fromkeys(of_set)} for n, of_set in categories.items()},
        "marks": rows,
        "curves": {arm: curves for arm in study.arms if (curves := _curves(out, arm))},
    }


def _baselines(study: AlignmentStudyConfig, arm: str, mark: Mark) -> list[tuple[str, Mark]]:
    """The arms and marks that a row is compared with.

    This is the same mark of the baseline, or its first mark if it does not have that one. If the baseline matches the
    KL of this row, its mark of equal KL is added.
    """
    name = study.baseline_of(arm)
    if name == arm:
        return []
    marks = study.marks(name)
    bases = [(name, mark if mark in marks else marks[0])]
    if study.arms[name].match_kl == arm and mark == study.marks(arm)[0] and (name, "kl") not in bases:
        bases.append((name, "kl"))
    return bases


def _folders(out: Path, arm: str) -> dict[int, Path]:
    """The folders of an arm's runs, by seed."""
    matches = ((re.fullmatch(rf"{re.escape(arm)}-(\d+)", f.name), f) for f in out.iterdir())
    return dict(sorted((int(match[1]), folder) for match, folder in matches if match))


def version_of(content: Mapping[str, Any]) -> dict[str, int]:
    """The version of the figures in a `measured.json`: `clip_version` of clips, otherwise `picture_version`.

    Figures of pictures that name none are of version 1: the oracle was the same when they were measured.
    """
    if "clip_version" in content:
        return {"clip_version": content["clip_version"]}
    return {"picture_version": content.get("picture_version", 1)}


def _measured(out: Path, arm: str, mark: Mark, start: Mapping[str, Any]) -> Measured:
    """Finished runs. Those that were measured with other features than the start's have no diversity. Those whose
    samples an earlier version measured are left out."""
    runs: Measured = {}
    for seed, folder in _folders(out, arm).items():
        files = [folder / "marks" / mark / name for name in ("mark.json", "measured.json")]
        if not all(f.is_file() for f in files):
            continue
        content = {key: value for f in files for key, value in json.loads(f.read_text()).items()}
        if version_of(content) != version_of(start):
            say(f"{folder.name}: left out, because an earlier version measured its samples; run its arm again")
            continue
        runs[seed] = content
        if runs[seed]["features"] != start["features"]:
            say(f"{folder.name}: its diversity was measured with other features than the start's; run its arm again")
            runs[seed]["diversity"] = None
    return runs


def _row(runs: Measured, start: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of one mark: `sets` has the gains (`_gain`); the others are by seed, `work` and `seconds` are means."""
    spreads = {seed: run["diversity"] for seed, run in runs.items() if run["diversity"] is not None}
    return {
        "seeds": list(runs),
        "sets": {
            name: _gain(
                {s: np.array(run["gold"][name]) - np.array(before) for s, run in runs.items()},
                start["prompts"][name]["categories"],
            )
            for name, before in start["gold"].items()
        },
        "reached": {seed: run["reached"] for seed, run in runs.items()},
        "steps": {seed: run["step"] for seed, run in runs.items()},
        "kl": {seed: run["kl"] for seed, run in runs.items()},
        "work": {n: float(np.mean([r["work"][n] for r in runs.values()])) for n in next(iter(runs.values()))["work"]},
        "seconds": float(np.mean([run["seconds"] for run in runs.values()])),
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs.values()])),
        "feature_diversity_ratio": {s: d["feature"] / start["diversity"]["feature"] for s, d in spreads.items()},
        "vendi": {seed: spread["vendi"] for seed, spread in spreads.items()},
        "proxy": {seed: run["proxy"].get("probe/proxy") for seed, run in runs.items()},
        "gap": {seed: run["proxy"].get("probe/gap") for seed, run in runs.items()},
        "hacking": {seed: run["proxy"].get("verdict", run["proxy"].get("probe/hacking")) for seed, run in runs.items()},
    }


def _gain(gains: Mapping[int, Array], categories: Sequence[str]) -> dict[str, Any]:
    """Intervals of the gains, (prompts, noises) for each seed.

    Returns:
        over_seeds: Student's interval of the seeds' means; over_prompts: bootstrap over prompts of the mean over these
        seeds; by_seed: bootstrap over prompts of every seed; categories: the first two for every category.
    """
    names = np.array(categories)
    return {
        **_intervals(list(gains.values())),
        "by_seed": {seed: bootstrap(g).as_dict() for seed, g in gains.items()},
        "categories": {c: _intervals([g[names == c] for g in gains.values()]) for c in dict.fromkeys(categories)},
    }


def _intervals(gains: Sequence[Array]) -> dict[str, Any]:
    """Intervals over seeds and over prompts of the gains, (prompts, noises) for each seed."""
    return {
        "over_seeds": students_interval([float(g.mean()) for g in gains]),
        "over_prompts": bootstrap(np.concatenate(gains, 1)).as_dict(),
    }


def _difference(
    runs: Measured, base: Measured, seeds: Sequence[int], widths: Mapping[str, float] | None
) -> dict[str, Any]:
    """An arm minus its baseline, paired by seed, prompt and noise.

    Returns:
        By set the intervals of `_intervals`, the difference of every seed, and the smallest difference that a paired
        t-test over as many seeds finds with 80% power (None for one seed). With `widths` of clips also
        `compare_clip_values`.
    """
    sets = {}
    for name in next(iter(runs.values()))["gold"]:
        gaps = [np.array(runs[s]["gold"][name]) - np.array(base[s]["gold"][name]) for s in seeds]
        means = [float(gap.mean()) for gap in gaps]
        by_seed = dict(zip(seeds, means, strict=True))
        sets[name] = {**_intervals(gaps), "by_seed": by_seed, "smallest": smallest_difference(means)}
    if widths is None:
        return {"sets": sets}
    clips, base_clips = ([side[s]["clips"] for s in seeds] for side in (runs, base))
    return {"sets": sets, "clips": compare_clip_values(clips, base_clips, widths)}


def _curves(out: Path, arm: str) -> dict[int, list[dict[str, float]]]:
    """Points at which KL and oracle were measured in training, by seed. The start is not among them."""
    curves: dict[int, list[dict[str, float]]] = {}
    for seed, folder in _folders(out, arm).items():
        points = [
            {"step": m["step"], "kl": m["study/kl"], "gold": m["study/gold"], "passes": m["work/generator_passes"]}
            for m in RunFolder(folder).metrics()
            if "study/kl" in m and "study/gold" in m
        ]
        if points:
            curves[seed] = points
    return curves
