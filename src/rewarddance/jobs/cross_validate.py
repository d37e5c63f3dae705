"""`rewarddance train --cross-validate K` and `--leave-one-out GROUP`: one judge a fold; each fold can be resumed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.core.parallel import barrier, is_leader
from rewarddance.core.runs import environment, same_settings, write_json
from rewarddance.core.seen import fingerprint
from rewarddance.core.statistics import students_interval
from rewarddance.core.streams import stream
from rewarddance.data.parquet import RecordTable
from rewarddance.evaluate.judge import measure_judge
from rewarddance.jobs.load import load_judge, load_to_train
from rewarddance.jobs.train import measured_once, seen_by_backbone, train_once, warn_of_labels
from rewarddance.reward.train_config import RewardConfig

AVERAGED = ("accuracy", "label_accuracy", "spearman", "disagreement", "answer_mass")
"""Figures of `measure_judge` whose mean over folds is reported."""


@dataclass(frozen=True)
class Fold:
    """Rows to train on and rows to measure on."""

    name: str
    train: tuple[int, ...]
    held_out: tuple[int, ...]


def folds_by_prompt(prompts: Sequence[str], num: int, seed: int) -> list[Fold]:
    """`num` folds with nearly equal numbers of prompts. All records of a prompt are in one fold.

    Raises:
        InputError: fewer prompts than folds, or fewer than two folds.
    """
    distinct = sorted(set(prompts))
    if num < 2 or len(distinct) < num:
        raise InputError(f"{num} folds of {len(distinct)} prompts: needs two folds or more and a prompt in each")
    order = stream(seed, "folds").permutation(len(distinct))
    fold_of = {distinct[int(p)]: i % num for i, p in enumerate(order)}
    return [_fold(f"fold-{k + 1}", [fold_of[p] == k for p in prompts]) for k in range(num)]


def folds_by_group(values: Sequence[str | None], group: str) -> list[Fold]:
    """One fold for every value, which is held out. Records without a value are in every training set.

    Raises:
        InputError: fewer than two values.
    """
    distinct = sorted({v for v in values if v is not None})
    if len(distinct) < 2:
        raise InputError(f"leave-one-out by {group!r}: the data has {len(distinct)} of its values, needs two or more")
    return [_fold(f"{group}-{v}", [x == v for x in values]) for v in distinct]


def _fold(name: str, held: Sequence[bool]) -> Fold:
    rows = [tuple(i for i, h in enumerate(held) if h is side) for side in (False, True)]
    return Fold(name, rows[0], rows[1])


def cross_validate(config: RewardConfig, folds: Sequence[Fold], table: RecordTable, out: Path) -> dict[str, Any]:
    """Train and measure every fold under `out`. Finished folds are kept, stopped ones are resumed.

    Returns:
        Figures of every fold and, of each figure, the mean with Student's 95% interval over folds (rough, because folds
        share most of their training records). Also in `out/cross_validation.json`.

    Raises:
        InputError: training starts from a judge that knows prompts of the folds.
    """
    warn_of_labels(table)
    known = seen_by_backbone(config)
    refuse_known(config.backbone, table, known)
    figures = {}
    for i, fold in enumerate(folds, 1):
        folder = fold_folder(out, fold)
        figures[fold.name] = _one_fold(config, fold, table, folder, f"{fold.name} ({i} of {len(folds)})", known)
    means = {}
    for name in AVERAGED:
        values = [f[name] for f in figures.values() if f.get(name) is not None]
        if values:
            means[name] = students_interval(values)
    result = {"mean": means, "folds": figures, **environment(), "config": config.model_dump(mode="json")}
    if is_leader():
        write_json(out / "cross_validation.json", result)
    return result


def refuse_known(backbone: str, table: RecordTable, known: frozenset[str] | None) -> None:
    """Check that training does not start from a judge that knows prompts of the folds.

    Raises:
        InputError: it does.
    """
    shared = {p for p in table.prompts if fingerprint(p) in (known or ())}
    if shared:
        raise InputError(f"{backbone}: a judge that knows {len(shared)} of these prompts; no fold is new to it")


def fold_folder(out: Path, fold: Fold) -> Path:
    """The run folder of a fold."""
    return out / re.sub(r"[^\w.-]+", "_", fold.name)


def check_fold(fold: Fold, table: RecordTable, folder: Path) -> None:
    """Write which rows a fold trains on and holds out, or check that they are the same as before. A collective.

    Raises:
        RunError: the folder was made with other rows.
    """
    prompts, labels = table.prompts, table.choice_labels
    content = [[(prompts[i], list(labels[i])) for i in rows] for rows in (fold.train, fold.held_out)]
    if is_leader():
        rows_sha256 = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        same_settings(folder / "fold.json", {"rows_sha256": rows_sha256})
    barrier()


def _one_fold(
    config: RewardConfig, fold: Fold, table: RecordTable, folder: Path, title: str, known: frozenset[str] | None
) -> dict[str, Any]:
    check_fold(fold, table, folder)

    def measure() -> dict[str, Any]:
        sizes = {"num_train": len(fold.train), "num_held_out": len(fold.held_out)}
        return sizes | measure_judge(load_judge(folder, compile=True), table.take(fold.held_out), shared=True)

    train_once(config, table.take(fold.train), folder, lambda: load_to_train(config), title, known)
    return measured_once(folder / "measured.json", measure)
