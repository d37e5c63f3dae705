"""Measures of clips before and after an alignment: criteria, good-same-bad, motion, and raters' scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewarddance.core.dynamics import MOVES, dynamic_degree
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.statistics import bootstrap, paired_bootstrap
from rewarddance.core.task import Task
from rewarddance.evaluate.generator import Features, Samples

Array = NDArray[np.float64]
SAME_SHARE = 1 / 3
"""Share of the pairs of samples of one generator that count as the same (`same_width`)."""
FRAMES = 5
"""Frames of a clip, evenly spread, that `clip_features` looks at."""


def same_width(values: Array) -> float:
    """How much two samples may differ and still be "the same".

    A third of the pairs of samples of one generator, for one prompt, differ by no more. Call it with development
    prompts and the generator before training, so that the width does not depend on what is compared.

    Args:
        values: (prompts, noises) with at least two noises.
    """
    i, j = np.triu_indices(values.shape[1], 1)
    return float(np.quantile(np.abs(values[:, i] - values[:, j]), SAME_SHARE))


def good_same_bad(after: Array, before: Array, width: float) -> dict[str, Any]:
    """Shares of pairs in which the sample after is better, the same, or worse, (prompts, noises) each.

    Returns:
        good, same, bad; gsb: (G - B) / (G + S + B) with its interval over prompts; width.
    """
    gap = after - before
    verdicts = np.where(np.abs(gap) <= width, 0.0, np.sign(gap))
    shares = {name: float(np.mean(verdicts == v)) for name, v in (("good", 1), ("same", 0), ("bad", -1))}
    return {**shares, "gsb": bootstrap(verdicts).as_dict(), "width": width}


def criteria_of(samples: Samples, task: Task) -> dict[str, Array]:
    """The task's criteria of every sample, (prompts, noises) each.

    Raises:
        ConfigError: the task has no criteria.
    """
    if task.criteria is None:
        raise ConfigError(f"task {task.name}: has no criteria")
    rows = [task.criteria([p] * len(row), row) for p, row in zip(samples.prompts, samples.media, strict=True)]
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


def dynamics(samples: Samples) -> Array:
    """`dynamic_degree` of every clip, (prompts, noises)."""
    return np.array([[dynamic_degree(m.frames) for m in row] for row in samples.media])


def _paired(after: Array, before: Array) -> dict[str, Any]:
    gain = paired_bootstrap(after, before)
    return {
        "before": bootstrap(before).as_dict(),
        "after": bootstrap(after).as_dict(),
        "gain": gain.as_dict() | {"verdict": gain.verdict},
    }


def compare_clips(after: Samples, before: Samples, task: Task, width: float, seed: int = 0) -> dict[str, Any]:
    """Figures of clips of the same prompts and noises, each before, after and the gain, with intervals over prompts.

    Args:
        width: of "same", from `same_width`.
        seed: of the simulated raters.

    Returns:
        criteria: by name; good_same_bad: by the gold standard; moving: share of clips with a dynamic degree above
        `MOVES`; dynamic_degree; alignment: simulated raters' scores from 0 to 2, where the task has raters.
    """
    values = {name: criteria_of(samples, task) for name, samples in (("after", after), ("before", before))}
    degree = {"after": dynamics(after), "before": dynamics(before)}
    figures: dict[str, Any] = {
        "criteria": {c: _paired(values["after"][c], values["before"][c]) for c in values["after"]},
        "good_same_bad": good_same_bad(values["after"]["overall"], values["before"]["overall"], width),
        "moving": _paired(*((degree[k] > MOVES).astype(np.float64) for k in ("after", "before"))),
        "dynamic_degree": _paired(degree["after"], degree["before"]),
    }
    if task.rate is not None:
        scores: Mapping[str, Array] = {k: task.rate(v, seed).mean(2) for k, v in values.items()}
        figures["alignment"] = _paired(scores["after"], scores["before"])
    return figures


def clip_features(features: Features) -> Features:
    """Features of clips from features of pictures: those of `FRAMES` frames, concatenated, and divided by the square
    root of their number.

    So the distance of two clips is the root mean square of the distances of their frames. Pictures keep theirs.
    """

    def of(media: Sequence[Media]) -> Tensor:
        num = min(FRAMES, media[0].num_frames)
        if num == 1:
            return features(media)
        chosen = np.linspace(0, media[0].num_frames - 1, num).round().astype(int).tolist()
        frames = [features([Media(m.frames[[k]]) for m in media]).float() for k in chosen]
        return torch.cat(frames, 1).div(num**0.5)

    return of
