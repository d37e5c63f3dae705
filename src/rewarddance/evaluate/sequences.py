"""Confidence sequences: intervals that hold at all times together, so one may look early and often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewarddance.evaluate.ab import Ballot, between

Array = NDArray[np.float64]
GRID = 201
"""Means that are tried, evenly over [0, 1]."""
BOUND = 0.5
"""Largest share of the capital that a bet may lose."""


@dataclass(frozen=True)
class Sequence95:
    """Intervals after each unit.

    Attributes:
        low, high: (T,) bounds of the mean; with probability 1 - alpha they hold for all t together.
        capital: (T,) of the bet against a mean of one half. At 1 / alpha that mean is refuted.
    """

    low: Array
    high: Array
    capital: Array


def confidence_sequence(values: ArrayLike, alpha: float = 0.05) -> Sequence95:
    """Hedged-capital confidence sequence of a mean (Waudby-Smith and Ramdas, JRSS B 2024, section 4.4).

    For each mean m, a gambler bets against it on both sides, with stakes that depend only on earlier values. If m is
    true the capital is a nonnegative martingale, which reaches 1 / alpha with probability at most alpha (Ville). The
    interval at time t holds the means whose capital has never reached 1 / alpha. No assumption is made about the
    values' distribution.

    Args:
        values: (T,) in [0, 1], in the order in which they came; each has the same mean, given the earlier ones.
    """
    x: Array = np.asarray(values, np.float64)
    means = np.linspace(0, 1, GRID)
    log_capital = _log_capital(x, means, alpha)
    alive = np.maximum.accumulate(log_capital, 0) < np.log(1 / alpha)
    alive |= ~alive.any(1, keepdims=True)  # if no mean is left, which may happen by chance, nothing is known
    step = 1 / (GRID - 1)  # a bound lies between the last kept mean and the next one: take the wide side
    low = np.maximum(0, means[alive.argmax(1)] - step)
    high = np.minimum(1, means[GRID - 1 - alive[:, ::-1].argmax(1)] + step)
    return Sequence95(low, high, np.exp(np.minimum(log_capital[:, GRID // 2], 700)))


def _log_capital(x: Array, means: Array, alpha: float) -> Array:
    """(T, M) log of the capital that bets against each mean."""
    stakes = _stakes(x, alpha)[:, None]
    up = np.minimum(stakes, BOUND / np.maximum(means, 1e-9))
    down = np.minimum(stakes, BOUND / np.maximum(1 - means, 1e-9))
    gaps = x[:, None] - means
    log_up, log_down = np.log1p(up * gaps).cumsum(0), np.log1p(-down * gaps).cumsum(0)
    return np.asarray(np.logaddexp(log_up, log_down) - np.log(2))


def _stakes(x: Array, alpha: float) -> Array:
    """(T,) predictable plug-in stakes: each is computed from the values before it."""
    t = np.arange(1, len(x) + 1)
    means = (0.5 + np.cumsum(x)) / (t + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    return np.asarray(np.sqrt(2 * np.log(2 / alpha) / (before * t * np.log(1 + t))))


def refuted(values: ArrayLike, alpha: float = 0.05) -> NDArray[np.bool_]:
    """(T,) whether a mean of one half has been refuted by time t; once refuted it stays so."""
    log_capital = _log_capital(np.asarray(values, np.float64), np.array([0.5]), alpha)[:, 0]
    return np.asarray(np.maximum.accumulate(log_capital) >= np.log(1 / alpha))


def units(ballots: Sequence[Ballot], a: str, b: str, per_prompt: int) -> list[float]:
    """Means of the prompts that have all their votes, in the order in which they were completed.

    A prompt counts as a whole because its votes are not independent of each other. The time when it is complete does
    not depend on the votes.

    Args:
        per_prompt: votes that a prompt needs; further ones do not count.
    """
    waiting: dict[str, list[float]] = {}
    made = []
    for vote in sorted(between(ballots, a, b), key=lambda v: v.order):
        own = waiting.setdefault(vote.prompt, [])
        own.append(vote.seen_from(a))
        if len(own) == per_prompt:
            made.append(sum(own) / per_prompt)
    return made


def look(ballots: Sequence[Ballot], a: str, b: str, per_prompt: int, alpha: float = 0.05) -> dict[str, Any]:
    """The state of `a` against `b`. One may look at any time and as often as one likes.

    Returns:
        complete: prompts with all votes. low, high: bounds of the win rate that hold at all looks together. verdict:
        `a`, `b`, or `open`.
    """
    values = units(ballots, a, b, per_prompt)
    if not values:
        return {"complete": 0, "low": 0.0, "high": 1.0, "verdict": "open"}
    sequence = confidence_sequence(values, alpha)
    decided = bool(sequence.capital.max() >= 1 / alpha)
    low, high = float(sequence.low[-1]), float(sequence.high[-1])
    better = a if low + high > 1 else b
    return {"complete": len(values), "low": low, "high": high, "verdict": better if decided else "open"}
