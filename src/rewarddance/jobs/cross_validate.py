"""`rewarddance train --cross-validate K` and `--leave-one-out GROUP`: a judge a fold, each of them resumable."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarddance.core.errors import InputError, RunError
from rewarddance.core.parallel import is_leader, wait_for_all
from rewarddance.core.runs import environment, write_json
from rewarddance.core.seen import fingerprint
from rewarddance.core.statistics import over_runs
from rewarddance.core.streams import stream
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.load import load_judge, load_to_train
from rewarddance.jobs.train import known_before, warn_of_labels
from rewarddance.jobs.train_reward import measured_once, train_once
from rewarddance.jobs.train_reward_config import RewardConfig
from rewarddance.reward.measure import measure_judge

FIGURES = ("accuracy", "label_accuracy", "spearman", "disagreement", "answer_mass")


@dataclass(frozen=True)
class Fold:
    """Rows to train on and rows to measure on."""

    name: str
    train: tuple[int, ...]
    held_out: tuple[int, ...]


def folds_by_prompt(prompts: Sequence[str], num: int, seed: int) -> list[Fold]:
    """`num` folds of nearly equal numbers of prompts; all records of a prompt are in one.

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
    """One fold a value, held out; records without a value are in every training set.

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
    """Train and measure every fold under `out`; what is finished is kept, what was stopped goes on.

    Returns:
        Figures of every fold and, of each figure, the mean with Student's 95% interval over folds (rough: folds share
        most of their training records); also in
        `out/cross_validation.json`.

    Raises:
        InputError: training goes on from a judge that knows prompts of the folds.
    """
    warn_of_labels(table)
    known = known_before(config)
    told = {p for p in table.prompts if fingerprint(p) in (known or ())}
    if told:
        raise InputError(f"{config.backbone}: a judge that knows {len(told)} of these prompts; no fold is new to it")
    found = {}
    for i, fold in enumerate(folds, 1):
        folder = out / re.sub(r"[^\w.-]+", "_", fold.name)
        found[fold.name] = _one(config, fold, table, folder, f"{fold.name} ({i} of {len(folds)})", known)
    summary = {}
    for name in FIGURES:
        values = [f[name] for f in found.values() if f.get(name) is not None]
        if values:
            summary[name] = over_runs(values)
    result = {"mean": summary, "folds": found, **environment(), "config": config.model_dump(mode="json")}
    if is_leader():
        write_json(out / "cross_validation.json", result)
    return result


def _one(
    config: RewardConfig, fold: Fold, table: RecordTable, folder: Path, title: str, known: frozenset[str] | None
) -> dict[str, Any]:
    _same_rows(fold, table, folder)

    def measure() -> dict[str, Any]:
        sizes = {"num_train": len(fold.train), "num_held_out": len(fold.held_out)}
        return sizes | measure_judge(load_judge(folder), table.take(fold.held_out), shared=True)

    train_once(config, table.take(fold.train), folder, lambda: load_to_train(config), title, known)
    return measured_once(folder / "measured.json", measure)


def _same_rows(fold: Fold, table: RecordTable, folder: Path) -> None:
    """Write down what a fold is made of, or make sure that a folder from before was made of the same.

    Raises:
        RunError: it was not.
    """
    prompts, labels = table.prompts, table.choice_labels
    content = [[(prompts[i], list(labels[i])) for i in rows] for rows in (fold.train, fold.held_out)]
    now = {"rows_sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest()}
    target = folder / "fold.json"
    wait_for_all()
    if target.is_file():
        if json.loads(target.read_text()) != now:
            raise RunError(f"{folder}: holds a fold of other records; name another --out")
    elif is_leader():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(target, now)
    wait_for_all()
