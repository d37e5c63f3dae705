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
from rewarddance.core.media import Media
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import progress
from rewarddance.core.types import Comparison
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.load import load_judge
from rewarddance.reward.measure import measure_judge


@torch.no_grad()
def score_one(
    judge: str, prompt: str, candidate: Path, reference: Path | None, criterion: str | None, tiles: int | None = None
) -> dict[str, float]:
    """Reward and margin of one picture, against a reference where there is one."""
    asked = Comparison(prompt, Media.open(candidate), None if reference is None else Media.open(reference), criterion)
    found = load_judge(judge, tiles=tiles).judge([asked])
    out = {
        "reward": float(found.reward[0]),
        "margin": float(found.margin[0]),
        "answer_mass": float(found.answer_mass[0]),
    }
    return out if found.disagreement is None else {**out, "disagreement": float(found.disagreement[0])}


@torch.no_grad()
def score_data(data: Path, judge: str, out: Path | None, tiles: int | None = None) -> dict[str, Any]:
    """Judge every choice of a Parquet file; figures, and with `out` one JSON line a choice.

    Of a folder the held-out prompts (`id.parquet`) are taken where there are some, otherwise `train.parquet`, part of
    which a judge may have been trained on; `file` in the result says which.
    """
    held_out = data / "id.parquet"
    file = data if data.is_file() else held_out if held_out.is_file() else data / "train.parquet"
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: no folder {out.parent}")
    table = RecordTable.open(file)
    ready = load_judge(judge, tiles=tiles)
    with progress("scoring") as report, _lines(out) as write:
        done = itertools.count(1)

        def note(record: PreferenceRecord, margins: NDArray[np.float64]) -> None:
            for c in record.choices:
                margin = float(margins[c.first, c.second])
                line = {"id": record.record_id, "first": c.first, "second": c.second, "label": c.label}
                write({**line, "reward": float(expit(margin)), "margin": margin})
            report(next(done), len(table))

        found = measure_judge(ready, table, each=note)
    return {"file": str(file), **found}


@contextmanager
def _lines(out: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes JSON lines to a file that is there once all are; to nowhere without one."""
    if out is None:
        yield lambda line: None
        return
    beside = out.with_name(f".{out.name}.partial")
    with open(beside, "w") as file:
        yield lambda line: print(json.dumps(line), file=file)
    beside.replace(out)
