"""Measures of clips before and after an alignment: criteria, good-same-bad, motion, raters' scores, and the distance to
right clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewarddance.core.clips import spread
from rewarddance.core.dynamics import MOVES, dynamic_degree, flicker
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.statistics import bootstrap, paired_bootstrap
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Rate, Task
from rewarddance.evaluate.generator import Features, Measure, Samples, measure, of_each
from rewarddance.evaluate.metrics.distributions import frechet_inception_distance
from rewarddance.evaluate.metrics.table import embed

Array = NDArray[np.float64]
SAME_SHARE = 1 / 3
"""Share of the pairs of samples of one generator that count as the same (`same_width`)."""
FRAMES = 5
"""Frames of a clip, evenly spread, that `clip_features` looks at."""
CLIP_MEASURES: Mapping[str, Measure] = {
    "dynamic_degree": lambda clip: dynamic_degree(clip.frames),
    "moving": lambda clip: float(dynamic_degree(clip.frames) > MOVES),
    "flicker": lambda clip: flicker(clip.frames),
}
"""Numbers of a clip from its pixels, each in [0, 1]: how much it moves, whether it moves, and how much it flickers."""


def same_width(values: Array) -> float:
    """How much two samples may differ and still be "the same".

    A third of the pairs of samples of one generator, for one prompt, differ by no more. Call it with development
    prompts and the generator before training, so that the width does not depend on what is compared.

    Args:
        values: (prompts, noises) with at least two noises.
    """
    i, j = np.triu_indices(values.shape[1], 1)
    return float(np.quantile(np.abs(values[:, i] - values[:, j]), SAME_SHARE))


def verdicts(after: Array, before: Array, width: float) -> Array:
    """1 if the sample after training is better, 0 if both are the same, -1 if it is worse."""
    gap = after - before
    return np.where(np.abs(gap) <= width, 0.0, np.sign(gap))


def good_same_bad(after: Array, before: Array, width: float) -> dict[str, Any]:
    """Shares of pairs in which the sample after is better, the same, or worse, (prompts, noises) each.

    Returns:
        good, same, bad; gsb: (G - B) / (G + S + B) with its interval over prompts; width.
    """
    signs = verdicts(after, before, width)
    shares = {name: float(np.mean(signs == v)) for name, v in (("good", 1), ("same", 0), ("bad", -1))}
    return {**shares, "gsb": bootstrap(signs).as_dict(), "width": width}


def criteria_of(samples: Samples, task: Task) -> dict[str, Array]:
    """The task's criteria of every sample, (prompts, noises) each.

    Raises:
        ConfigError: the task has no criteria.
    """
    if task.criteria is None:
        raise ConfigError(f"task {task.name}: has no criteria")
    rows = [task.criteria([p] * len(row), row) for p, row in zip(samples.prompts, samples.media, strict=True)]
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


def gold_and_criteria(samples: Samples, task: Task) -> tuple[Array, dict[str, Array]]:
    """The gold standard of every sample and its parts, (prompts, noises) each. Every sample is judged once.

    The parts are empty if the task has none.

    Raises:
        ConfigError: the task has no gold standard.
    """
    if task.criteria is None:
        return measure(samples, task), {}
    criteria = criteria_of(samples, task)
    return criteria["overall"], criteria


def dynamics(samples: Samples) -> Array:
    """`dynamic_degree` of every clip, (prompts, noises)."""
    return of_each(samples, CLIP_MEASURES["dynamic_degree"])


def _paired(after: Array, before: Array) -> dict[str, Any]:
    gain = paired_bootstrap(after, before)
    return {
        "before": bootstrap(before).as_dict(),
        "after": bootstrap(after).as_dict(),
        "gain": gain.as_dict() | {"verdict": gain.verdict},
    }


def compare_clips(
    after: Samples,
    before: Samples,
    values: Mapping[str, Mapping[str, Array]],
    width: float,
    rate: Rate | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of clips of the same prompts and noises, each before, after and the gain, with intervals over prompts.

    Args:
        values: `criteria_of` the clips, by "after" and "before".
        width: of "same", from `same_width`.
        rate, seed: simulated raters (`Task.rate`), and the seed of their noise, which differs before and after.

    Returns:
        criteria: by name; good_same_bad: by the gold standard; moving: share of clips with a dynamic degree above
        `MOVES`; dynamic_degree; alignment: simulated raters' scores of fidelity from 0 to 2, if there are raters.
    """
    degree = {"after": dynamics(after), "before": dynamics(before)}
    figures: dict[str, Any] = {
        "criteria": {c: _paired(values["after"][c], values["before"][c]) for c in values["after"]},
        "good_same_bad": good_same_bad(values["after"]["overall"], values["before"]["overall"], width),
        "moving": _paired(*((degree[k] > MOVES).astype(np.float64) for k in ("after", "before"))),
        "dynamic_degree": _paired(degree["after"], degree["before"]),
    }
    if rate is not None:
        scores = {k: rate(v["fidelity"], seed_of(seed, "raters", k)).mean(2) for k, v in values.items()}
        figures["alignment"] = _paired(scores["after"], scores["before"])
    return figures


def clip_features(features: Features) -> Features:
    """Features of clips from features of pictures: those of `FRAMES` frames, concatenated, and divided by the square
    root of their number.

    So the distance of two clips is the root mean square of the distances of their frames. Pictures keep their features.
    """

    def of(media: Sequence[Media]) -> Tensor:
        num = min(FRAMES, media[0].num_frames)
        if num == 1:
            return features(media)
        chosen = spread(media[0].num_frames, FRAMES)
        frames = [features([Media(m.frames[[k]]) for m in media]).float() for k in chosen]
        return torch.cat(frames, 1).div(num**0.5)

    return of


def clip_distance(samples: Samples, reference: Array, features: Features) -> float:
    """Squared Fréchet distance of the features of clips to those of a reference set (`frechet_inception_distance`).

    Features of clips have more dimensions than there are clips, so both covariances are singular. The distance is
    still defined, but it is too large by an amount that depends on the numbers of clips. Compare it only between
    equal numbers of samples, with the same reference set and the same features.

    Args:
        reference: features of the reference set, (M, D).
        features: of clips (`clip_features`).
    """
    clips = np.concatenate([embed(features, row) for row in samples.media])
    return frechet_inception_distance(clips, reference)
