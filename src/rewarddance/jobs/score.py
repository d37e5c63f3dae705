"""`rewarddance score`: one question, or every comparison of a data folder."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from rewarddance.core.errors import InputError
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import progress
from rewarddance.core.types import Comparison
from rewarddance.data.parquet import RecordTable, split_files
from rewarddance.evaluate.judge import Refused, measure_judge
from rewarddance.reward.composite import AnyJudge, Composite


@torch.no_grad()
def score_one(judge: AnyJudge, comparison: Comparison, explain: bool = False) -> dict[str, Any]:
    """Reward and margin of one picture, against a reference where there is one.

    Args:
        explain: add a composite's parts (`Composite.explain`), or a judge's own words.

    Raises:
        JudgementError: the judge refuses.
    """
    verdict = judge.judge([comparison], on_refused="raise")
    out: dict[str, Any] = {
        "reward": float(verdict.reward[0]),
        "margin": float(verdict.margin[0]),
        "answer_mass": float(verdict.answer_mass[0]),
    }
    if verdict.disagreement is not None:
        out["disagreement"] = float(verdict.disagreement[0])
    if explain and isinstance(judge, Composite):
        out |= judge.explain([comparison])[0]
    elif explain:
        out["explanation"] = judge.explain([comparison])[0]
    return out | {"computes_in": judge.precision}


@torch.no_grad()
def score_data(data: Path, judge: AnyJudge, out: Path | None) -> dict[str, Any]:
    """Judge every choice of a Parquet file or a data folder; returns figures, and with `out` writes one JSON line a
    choice.

    A refused choice is a line with `reward` and `margin` null and the reason under `refused`. Any number may be
    refused. Of a folder, `id.parquet` (held-out prompts) is scored. If there is none, `train.parquet` is scored, and
    the judge may have been trained on it. `file` in the result says which. `num_ties` counts ties, which accuracies
    leave out.
    """
    file = scored_file(data)
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: no folder {out.parent}")
    table = RecordTable.open(file)
    with progress("scoring") as report, _json_lines(out) as write:
        done = itertools.count(1)

        def note(record: PreferenceRecord, margins: NDArray[np.float64], refused: Refused) -> None:
            for c in record.choices:
                line = {"id": record.record_id, "first": c.first, "second": c.second, "label": c.label}
                reason = refused.get((min(c.first, c.second), max(c.first, c.second)))
                if reason is not None:
                    write({**line, "reward": None, "margin": None, "refused": reason})
                else:
                    margin = float(margins[c.first, c.second])
                    write({**line, "reward": float(expit(margin)), "margin": margin})
            report(next(done), len(table))

        figures = measure_judge(judge, table, each=note, max_refused=None)
    return {"file": str(file), **figures, "computes_in": judge.precision}


def scored_file(data: Path) -> Path:
    """A Parquet file itself; of a folder the held-out prompts where there are some, otherwise `train.parquet`."""
    held_out = data / "id.parquet"
    return data if data.is_file() else held_out if split_files(held_out) else data / "train.parquet"


@contextmanager
def _json_lines(out: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes JSON lines to a temporary file that becomes `out` at the end and is removed after an error. Without `out`
    it writes nothing.
    """
    if out is None:
        yield lambda line: None
        return
    beside = out.with_name(f".{out.name}.partial")
    try:
        with open(beside, "w") as file:
            yield lambda line: print(json.dumps(line), file=file)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
