"""`rewarddance study paradigms`: judges that differ in one thing, on the same preferences, in one table."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rewarddance.core.config import merge, parse_config
from rewarddance.core.parallel import is_leader
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import console
from rewarddance.core.runs import RunFolder, environment, write_json
from rewarddance.core.statistics import over_runs
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.load import load_judge, load_to_train
from rewarddance.jobs.rationales import OracleTeacher, add_rationales
from rewarddance.jobs.study_differences import RightByPrompt, differences, differences_table
from rewarddance.jobs.study_table import table
from rewarddance.jobs.train import known_before, load_sets, warn_of_labels
from rewarddance.jobs.train_reward import measured_once, train_once
from rewarddance.jobs.train_reward_config import RewardConfig
from rewarddance.reward.checkpoint import Judge
from rewarddance.reward.measure import measure_judge

PARADIGM_VARIANTS: dict[str, dict[str, Any]] = {
    "regression": {"paradigm": "regression", "context": {"reference": "random"}},
    "bradley_terry": {"paradigm": "bradley_terry"},
    "bradley_terry_ties": {"paradigm": "bradley_terry_ties"},
    "uncertainty": {"paradigm": "uncertainty"},
    "ranking": {"paradigm": "ranking"},
    "pointwise": {"paradigm": "generative_pointwise", "context": {"reference": "random"}},
    "pairwise, no instruction": {"paradigm": "generative_pairwise", "context": {"instruction": False}},
    "pairwise": {"paradigm": "generative_pairwise"},
    "pairwise, by roles": {"paradigm": "generative_pairwise", "context": {"names": "roles"}},
    "pairwise, best references": {"paradigm": "generative_pairwise", "context": {"reference": "best_of_n"}},
    "pairwise, two questions": {"paradigm": "generative_pairwise", "context": {"layout": "two_questions"}},
    "pairwise, listwise": {"paradigm": "generative_pairwise", "context": {"layout": "listwise"}},
    "pairwise, answer first": {"paradigm": "generative_pairwise", "context": {"cot": "answer_first"}},
}
"""What `study paradigms` compares; everything else of the configuration is the same."""
AGAINST = "pairwise"
"""What every variant is compared with."""
FIGURES = ("accuracy", "accuracy_generator", "accuracy_rendered", "spearman", "disagreement")


def study_judges(
    base: RewardConfig, variants: Mapping[str, Mapping[str, Any]], data: Path, out: Path, seeds: Sequence[int]
) -> dict[str, Any]:
    """Train and measure every variant with every seed under `out`; what is finished is kept, what was stopped goes on.

    Args:
        variants: changes to the configuration, by name.
        data: a folder with `train.parquet`, `id.parquet` and `ood.parquet`.

    Returns:
        For every variant: figures of each seed, and the mean of each figure with a 95% interval over seeds; variants
        that the data cannot feed are left out and said so, under `skipped`; under `differences`, every variant less
        `AGAINST` on the same pairs. Also in `out/study.json`, with a table in `out/table.md`.
    """
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    train = RecordTable.open(data / "train.parquet")
    warn_of_labels(train)
    for name, change in variants.items():
        config = parse_config(RewardConfig, merge(base.model_dump(), change), name)
        lacking = _lacking(config, train)
        if lacking is not None:
            skipped[name] = lacking
            console.print(f"{name}: left out, {lacking}", highlight=False, markup=False, soft_wrap=True)
            continue
        source = data
        if config.context.cot != "none" and not train.has_rationales:
            source = out / "data-with-reasons"
            if not (source / "rationales.json").is_file():
                add_rationales(data, OracleTeacher(), source)
        rows = []
        for seed in seeds:
            mine = config.model_copy(update={"seed": seed, "data": str(source)})
            rows.append(measured_judge(mine, out / f"{_file_name(name)}-{seed}", f"{name}, seed {seed}"))
        found[name] = {"parameters": rows[0]["parameters"], "seeds": rows, "mean": _means(rows)}
        _written(found, skipped, base, out)
    return _written(found, skipped, base, out)


def _written(found: dict[str, Any], skipped: dict[str, str], base: RewardConfig, out: Path) -> dict[str, Any]:
    """The study so far, also in its files."""
    gaps = differences(found, AGAINST)
    result = {"variants": found, "skipped": skipped, "differences": gaps, "against": AGAINST}
    result |= {**environment(), "config": base.model_dump(mode="json")}
    if is_leader():
        write_json(out / "study.json", result)
        (out / "table.md").write_text(table(found) + differences_table(gaps, AGAINST))
    return result


def _lacking(config: RewardConfig, train: RecordTable) -> str | None:
    """What the data would need for a variant, None where it has it."""
    if config.paradigm == "regression" and not train.has_ratings:
        return "the records have no ratings"
    if config.context.cot != "none" and not (train.has_rationales or train.has_truth):
        return "the records have no reasons; `rewarddance data rationales --url` asks a model for them"
    return None


def _file_name(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "_")


def measured_judge(config: RewardConfig, folder: Path, title: str) -> dict[str, Any]:
    """Train a judge in `folder` (or go on, or keep what is finished) and measure it once, in `measured.json`."""
    known = known_before(config)
    train, held_out = load_sets(Path(config.data), 0, seen=known)
    trained = folder / "trained.json"

    def measure() -> dict[str, Any]:
        judge = load_judge(folder)
        counted = {n: RightByPrompt() for n in held_out}
        return {
            **{n: measure_judge(judge, r, each=counted[n], shared=True) for n, r in held_out.items()},
            "right_by_prompt": {n: c.found for n, c in counted.items()},
            "parameters": sum(p.numel() for p in judge.engine.backbone.module.parameters()),
            "train_seconds": RunFolder(folder).metrics()[-1]["seconds"],
            **(json.loads(trained.read_text()) if trained.is_file() else {}),
            **(latency(judge, next(iter(held_out.values()))) if is_leader() else {}),
        }

    train_once(config, train, folder, lambda: load_to_train(config), title, known)
    return measured_once(folder / "measured.json", measure)


@torch.no_grad()
def latency(judge: Judge, records: Sequence[PreferenceRecord], rounds: int = 40) -> dict[str, float]:
    """Seconds of a single comparison (both orders), and pictures judged a second when many are asked together."""
    asked = [c for r in records for c in r.comparisons()]
    seconds = []
    for i in range(rounds + 3):
        began = time.perf_counter()
        judge.judge([asked[i % len(asked)]])
        if i >= 3:
            seconds.append(time.perf_counter() - began)
    many = asked[:256]
    began = time.perf_counter()
    judge.judge(many)
    whole = time.perf_counter() - began
    pictures = len({id(m) for c in many for m in (c.candidate, c.reference)})
    return {
        "latency_p50": statistics.median(seconds),
        "latency_p95": statistics.quantiles(seconds, n=20)[-1],
        "pictures_per_second": pictures / whole,
        "comparisons_per_second": len(many) / whole,
    }


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for split in ("id", "ood"):
        for figure in FIGURES:
            values = [r[split][figure] for r in rows if r.get(split, {}).get(figure) is not None]
            if values:
                out[f"{split}/{figure}"] = over_runs(values)
    return out
