"""Confidence sequences: intervals that hold at all times together, so one may look early and often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
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
class Bounds:
    """Intervals after each unit.

    Attributes:
        low, high: (T,) bounds of the mean; with probability 1 - alpha they hold for all t together.
    """

    low: Array
    high: Array


def confidence_sequence(values: ArrayLike, alpha: float = 0.05) -> Bounds:
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
    return Bounds(low, high)


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

    The unit is a prompt, so the result is about the people who judge in the study. It does not allow for the chance
    that other people have another taste; the figures by prompt and person of `ab.compare` do, at the end of a study.

    Args:
        alpha: the chance that equal systems are ever called different, over all looks.

    Returns:
        complete: prompts with all votes. low, high: bounds of the win rate that hold at all looks together, with
        probability 1 - alpha. verdict: `a`, `b`, or `open`. A verdict that was reached stays.
    """
    values = units(ballots, a, b, per_prompt)
    if not values:
        return {"complete": 0, "low": 0.0, "high": 1.0, "verdict": "open"}
    sequence = confidence_sequence(values, alpha)
    decided = refuted(values, alpha)
    verdict = "open"
    if decided[-1]:
        first = int(decided.argmax()) + 1
        verdict = a if sum(values[:first]) > first / 2 else b
    low, high = float(sequence.low[-1]), float(sequence.high[-1])
    return {"complete": len(values), "low": low, "high": high, "verdict": verdict}


def looks(
    ballots: Sequence[Ballot], systems: Sequence[str], per_prompt: int, alpha: float = 0.05
) -> dict[tuple[str, str], dict[str, Any]]:
    """`look` at every pair of systems, so that all verdicts together are right with probability 1 - alpha.

    Each pair is looked at with `alpha` divided by the number of pairs (Bonferroni).
    """
    pairs = list(combinations(systems, 2))
    return {(a, b): look(ballots, a, b, per_prompt, alpha / len(pairs)) for a, b in pairs}
