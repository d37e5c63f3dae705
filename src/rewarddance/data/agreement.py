"""Agreement between annotators, and ratings of systems from choices between them. Pure functions on numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rewarddance.core.statistics import bradley_terry
from rewarddance.core.streams import stream

Array = NDArray[np.float64]
DRAWS = 400
"""Bootstrap draws of an interval."""
BLOCK = 1 << 22
"""Numbers that the weights of some bootstrap draws take at most (32 MiB); all draws at once take DRAWS x units."""


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha: 1 is perfect agreement, 0 is chance, below 0 is systematic disagreement.

    Attributes:
        alpha: None where nobody judged the same thing, or all judgements are equal.
        low, high: 95 per cent bootstrap interval over units.
        num_units: units that two or more judged.
        num_values: judgements of these units.
    """

    alpha: float | None
    low: float | None
    high: float | None
    num_units: int
    num_values: int


def krippendorff(units: Sequence[Sequence[float]], level: Literal["nominal", "interval"] = "nominal") -> Agreement:
    """Krippendorff's alpha (Content Analysis, 2018, chapter 12), 1 - observed / expected disagreement.

    Args:
        units: the judgements of every unit. Units with fewer than two do not count.
        level: `nominal`: two values are equal or not. `interval`: they differ by the square of their distance.
    """
    pairable = [u for u in units if len(u) > 1]
    values = np.unique([v for u in pairable for v in u])
    if not pairable:
        return Agreement(None, None, None, 0, 0)
    place = {v: i for i, v in enumerate(values.tolist())}
    counts = np.zeros((len(pairable), len(values)))
    for row, unit in enumerate(pairable):
        for v in unit:
            counts[row, place[v]] += 1
    gaps = values[:, None] - values
    distance = (gaps != 0).astype(np.float64) if level == "nominal" else gaps**2
    observed = np.einsum("uv,vw,uw->u", counts, distance, counts) / (counts.sum(1) - 1)
    alpha = _alpha(np.ones((1, len(counts))), counts, observed, distance)[0]
    num = len(counts)
    rng = stream(0, "krippendorff")
    each = max(1, BLOCK // num)
    blocks = [
        _alpha(rng.multinomial(num, np.full(num, 1 / num), size=size).astype(np.float64), counts, observed, distance)
        for size in (min(each, DRAWS - first) for first in range(0, DRAWS, each))
    ]
    drawn = np.concatenate(blocks)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    finite = [float(x) if np.isfinite(x) else None for x in (alpha, low, high)]
    return Agreement(finite[0], finite[1], finite[2], num, int(counts.sum()))


def _alpha(weights: Array, counts: Array, observed: Array, distance: Array) -> Array:
    """(D,) alphas. weights (D, U): how often each unit counts; counts (U, V); observed (U,); distance (V, V)."""
    totals = weights @ counts
    num = totals.sum(1)
    expected = np.einsum("dv,vw,dw->d", totals, distance, totals) / (num - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 - (weights @ observed) / expected)


def elo_ratings(wins: Mapping[tuple[str, str], float], prior: float = 0.5) -> dict[str, float]:
    """Ratings of systems from choices, in Elo points with mean 0, the best first (`core.statistics.bradley_terry`).

    Args:
        wins: (winner, loser) -> number of wins; a tie is half a win for both.
        prior: wins that every two systems that met are given against each other, so that ratings stay finite.
    """
    names = sorted({name for pair in wins for name in pair})
    place = {name: i for i, name in enumerate(names)}
    won = np.zeros((len(names), len(names)))
    for (winner, loser), num in wins.items():
        if winner != loser:
            won[place[winner], place[loser]] += num
    elo = bradley_terry(won + prior * ((won + won.T) > 0))
    return {names[i]: float(elo[i]) for i in np.argsort(-elo)}
