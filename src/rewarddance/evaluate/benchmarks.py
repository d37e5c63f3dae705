"""Reads what the scorers of public benchmarks write about samples: GenEval, T2I-CompBench and VBench."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewarddance.core.errors import InputError
from rewarddance.core.statistics import grouped_interval
from rewarddance.data.files import jsonl_rows

INTERVAL_PROMPTS = 4
"""The fewest prompts for an interval."""


@dataclass(frozen=True)
class Scored:
    """The score of one sample, in [0, 1] or as the scorer gives it."""

    category: str
    prompt: str
    score: float


def benchmark_results(file: Path, samples: Path | None = None) -> dict[str, Any]:
    """Means by category with 95% intervals over prompts, from the result file of a scorer.

    GenEval: JSONL with `correct` of every picture; the category is its tag. T2I-CompBench: a JSON list of
    `question_id` and `answer`. VBench: a JSON object of dimensions, each a mean and a list of clips.

    Args:
        samples: the folder of `sample`, whose `samples.json` says to which prompt an answer of T2I-CompBench belongs.
            Without it each of its answers counts as a prompt of its own.

    Returns:
        benchmark; num_samples; categories: by name mean, num_prompts, and ci, or None with few prompts; mean: over
        categories. VBench has no such mean, because its dimensions have scales of their own.

    Raises:
        InputError: no such file, content of another kind, or a score that is not a number.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file of results")
    try:
        name, scored = _read(file, samples)
        rows = list(scored)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot read it ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{file}: no results of GenEval, T2I-CompBench or VBench ({error!r})") from None
    if not rows:
        raise InputError(f"{file}: holds no results")
    if not np.isfinite([r.score for r in rows]).all():
        raise InputError(f"{file}: a score is not a number")
    categories = {c: _level([r for r in rows if r.category == c]) for c in dict.fromkeys(r.category for r in rows)}
    figures = {"benchmark": name, "num_samples": len(rows), "categories": categories}
    if name != "vbench":  # its dimensions have scales of their own
        figures["mean"] = float(np.mean([level["mean"] for level in categories.values()]))
    return figures


def _level(rows: list[Scored]) -> dict[str, Any]:
    values, prompts = [(r.prompt, r.score) for r in rows], len({r.prompt for r in rows})
    ci = grouped_interval(values) if prompts >= INTERVAL_PROMPTS else None
    return {"mean": float(np.mean([score for _, score in values])), "ci": ci, "num_prompts": prompts}


def _read(file: Path, samples: Path | None) -> tuple[str, Iterator[Scored]]:
    if file.suffix == ".jsonl":
        return "geneval", _geneval(file)
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    if isinstance(content, list):
        return "compbench", _compbench(content, samples)
    return "vbench", _vbench(content)


def _geneval(file: Path) -> Iterator[Scored]:
    for number, row in jsonl_rows(file):
        if isinstance(row, str):
            raise ValueError(f"line {number}: {row}")
        yield Scored(str(row["tag"]), str(row["prompt"]), float(bool(row["correct"])))


def _compbench(rows: list[Mapping[str, Any]], samples: Path | None) -> Iterator[Scored]:
    """`question_id` is the position of a picture, in the order of the numbers in the file names."""
    prompts = [] if samples is None else [s["prompt"] for s in json.loads((samples / "samples.json").read_text())]
    for row in rows:
        number = int(row["question_id"])
        if number < 0:
            raise ValueError(f"question_id {number}: negative")
        yield Scored("all", prompts[number] if samples is not None else str(number), float(row["answer"]))


def _vbench(content: Mapping[str, Any]) -> Iterator[Scored]:
    """In `imaging_quality` clips have scores from 0 to 100; the mean of the dimension is from 0 to 1 as elsewhere."""
    for dimension, (_, clips) in content.items():
        scale = 0.01 if dimension == "imaging_quality" else 1.0
        for clip in clips:
            prompt = Path(str(clip["video_path"])).stem.rpartition("-")[0]
            yield Scored(dimension, prompt, scale * float(clip["video_results"]))
