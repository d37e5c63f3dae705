"""`rewarddance study paradigms`: judges that differ in one setting, on the same preferences, in one table."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rewarddance.core.config import Config, merge, parse_config
from rewarddance.core.parallel import is_leader
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder, environment, write_json
from rewarddance.core.statistics import students_interval
from rewarddance.data.parquet import RecordTable
from rewarddance.evaluate.judge import measure_judge
from rewarddance.jobs.data.rationales import OracleTeacher, add_rationales
from rewarddance.jobs.load import load_single_judge, load_to_train
from rewarddance.jobs.train import load_sets, measured_once, seen_by_backbone, train_once, warn_of_labels
from rewarddance.lab.study_differences import RightByPrompt, differences
from rewarddance.lab.study_tables import as_markdown, judge_tables
from rewarddance.reward.judge import Judge
from rewarddance.reward.train_config import RewardConfig

PARADIGM_VARIANTS: dict[str, dict[str, Any]] = {
    "regression": {"paradigm": "regression", "context": {"reference": "random"}},
    "bradley_terry": {"paradigm": "bradley_terry"},
    "bradley_terry_ties": {"paradigm": "bradley_terry_ties"},
    "uncertainty": {"paradigm": "uncertainty"},
    "ranking": {"paradigm": "ranking"},
    "pointwise": {"paradigm": "generative_pointwise", "context": {"reference": "random"}},
    "pairwise, no instruction": {"paradigm": "generative_pairwise", "context": {"instruction": False}},
    "pairwise": {"paradigm": "generative_pairwise"},
    "pairwise, by roles": {"paradigm": "generative_pairwise", "context": {"template": "embedded-roles"}},
    "pairwise, best references": {"paradigm": "generative_pairwise", "context": {"reference": "best_of_n"}},
    "pairwise, two questions": {"paradigm": "generative_pairwise", "context": {"layout": "two_questions"}},
    "pairwise, listwise": {"paradigm": "generative_pairwise", "context": {"layout": "listwise"}},
    "pairwise, answer first": {"paradigm": "generative_pairwise", "context": {"cot": "answer_first"}},
}
"""The variants: changes to one configuration."""
AGAINST = "pairwise"
"""The variant that every other one is compared with."""
AVERAGED = ("accuracy", "accuracy_generator", "accuracy_rendered", "spearman", "disagreement")


def study_judges(
    base: RewardConfig, variants: Mapping[str, Mapping[str, Any]], data: Path, out: Path, seeds: Sequence[int]
) -> dict[str, Any]:
    """Train and measure every variant with every seed under `out`. Finished runs are kept, stopped ones are resumed.

    Args:
        variants: changes to the configuration, by name.
        data: a folder with `train.parquet`, `id.parquet` and `ood.parquet`.

    Returns:
        variants: figures of each seed, and the mean of each figure with a 95% interval over seeds; skipped: variants
        for which the data lacks something, with the reason; differences: every variant minus `AGAINST` on equal pairs.
        Also in `out/study.json`, with tables in `out/table.md`.
    """
    entries: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    train = RecordTable.open(data / "train.parquet")
    warn_of_labels(train)
    for name, change in variants.items():
        config = parse_config(RewardConfig, merge(base.model_dump(), change), name)
        lacking = _lacking(config, train)
        if lacking is not None:
            skipped[name] = lacking
            say(f"{name}: left out, {lacking}")
            continue
        source = data
        if config.context.cot != "none" and not train.has_rationales:
            source = out / "data-with-reasons"
            if not (source / "rationales.json").is_file():
                add_rationales(data, OracleTeacher(), source)
        rows = []
        for seed in seeds:
            seeded = config.model_copy(update={"seed": seed, "data": str(source)})
            folder = f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
            rows.append(measured_judge(seeded, out / folder, f"{name}, seed {seed}"))
        entries[name] = {"parameters": rows[0]["parameters"], "seeds": rows, "mean": _means(rows)}
        _write(entries, skipped, base, out)
    return _write(entries, skipped, base, out)


def _write(entries: dict[str, Any], skipped: dict[str, str], base: RewardConfig, out: Path) -> dict[str, Any]:
    """Write the study so far; returns it."""
    gaps = differences(entries, AGAINST)
    study = {"variants": entries, "skipped": skipped, "differences": gaps, "against": AGAINST}
    return write_study(study, base, out)


def write_study(figures: Mapping[str, Any], config: Config, out: Path) -> dict[str, Any]:
    """Write a study of judges to `study.json`, with the environment and the configuration, and `table.md`; return it.

    In a group of processes the leader writes.
    """
    study = {**figures, **environment(), "config": config.model_dump(mode="json")}
    if is_leader():
        write_json(out / "study.json", study)
        (out / "table.md").write_text(as_markdown(judge_tables(study)))
    return study


def _lacking(config: RewardConfig, train: RecordTable) -> str | None:
    """The part of the data that a variant needs and does not find; None if nothing is missing."""
    if config.paradigm == "regression" and not train.has_ratings:
        return "the records have no ratings"
    if config.context.cot != "none" and not (train.has_rationales or train.has_truth):
        return "the records have no reasons; `rewarddance data rationales --url` asks a model for them"
    return None


def measured_judge(config: RewardConfig, folder: Path, title: str) -> dict[str, Any]:
    """Train a judge in `folder` (or resume it, or keep it) and measure it once, in `measured.json`."""
    seen = seen_by_backbone(config)
    train, held_out = load_sets(Path(config.data), 0, seen=seen)
    trained = folder / "trained.json"

    def measure() -> dict[str, Any]:
        judge = load_single_judge(folder)
        counted = {n: RightByPrompt() for n in held_out}
        return {
            **{n: measure_judge(judge, r, each=counted[n], shared=True) for n, r in held_out.items()},
            "right_by_prompt": {n: c.counts for n, c in counted.items()},
            "parameters": sum(p.numel() for p in judge.engine.backbone.module.parameters()),
            "train_seconds": RunFolder(folder).metrics()[-1]["seconds"],
            **(json.loads(trained.read_text()) if trained.is_file() else {}),
            **(latency(judge, next(iter(held_out.values()))) if is_leader() else {}),
        }

    train_once(config, train, folder, lambda: load_to_train(config), title, seen)
    return measured_once(folder / "measured.json", measure)


@torch.no_grad()
def latency(judge: Judge, records: Sequence[PreferenceRecord]) -> dict[str, float]:
    """Seconds of a single comparison (both orders), and pictures judged a second when many are asked together."""
    comparisons = [c for r in records for c in r.comparisons()]
    seconds = []
    for i in range(43):
        began = time.perf_counter()
        judge.judge([comparisons[i % len(comparisons)]]).margin.cpu()  # waits for a GPU
        if i >= 3:  # the first calls warm up
            seconds.append(time.perf_counter() - began)
    many = comparisons[:256]
    began = time.perf_counter()
    judge.judge(many).margin.cpu()
    total = time.perf_counter() - began
    pictures = len({id(m) for c in many for m in (c.candidate, c.reference)})
    return {
        "latency_p50": statistics.median(seconds),
        "latency_p95": statistics.quantiles(seconds, n=20)[-1],
        "pictures_per_second": pictures / total,
        "comparisons_per_second": len(many) / total,
    }


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means: dict[str, Any] = {}
    for split in ("id", "ood"):
        for figure in AVERAGED:
            values = [r[split][figure] for r in rows if r.get(split, {}).get(figure) is not None]
            if values:
                means[f"{split}/{figure}"] = students_interval(values)
    return means
