"""Statistics of blinded comparisons between systems. Pure functions on votes; no torch, no files.

Votes on one prompt share pictures, and votes of one person share a taste. So every figure has its uncertainty twice
(`clusters.py`): by prompt, which says how far other prompts would move it with the same people; and by prompt and
person (`two_way`), which says how far other people would move it too.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from rewarddance.core.errors import InputError
from rewarddance.core.statistics import bradley_terry
from rewarddance.core.streams import stream
from rewarddance.evaluate.clusters import (
    cluster_interval,
    clustered_sign_test,
    clustered_wilson,
    fewest,
    percentiles,
    resampled,
)

Array = NDArray[np.float64]
ICC = 0.2
"""Correlation of two votes on one prompt that `needed` and `visible` expect."""


@dataclass(frozen=True)
class Ballot:
    """One vote between two systems.

    Attributes:
        value: 1 if `first` is better, 0 if `second` is, 0.5 for a tie.
        order: the order of the votes in time; any growing number.
    """

    prompt: str
    annotator: str
    first: str
    second: str
    value: float
    category: str = ""
    order: float = 0.0

    def seen_from(self, system: str) -> float:
        """The value from the side of one of the two systems."""
        return self.value if system == self.first else 1 - self.value


def between(ballots: Sequence[Ballot], a: str, b: str) -> list[Ballot]:
    """The votes between two systems."""
    return [v for v in ballots if {v.first, v.second} == {a, b}]


def compare(ballots: Sequence[Ballot], a: str, b: str) -> dict[str, Any]:
    """`a` against `b`.

    Returns:
        good, same, bad: votes for `a`, ties, votes for `b`. gsb: (good - bad) / all, in [-1, 1], with bootstrap
        intervals by prompt (`low`, `high`) and by prompt and person (`low_two_way`, `high_two_way`). win_rate: ties
        count half; with the same intervals, and Wilson's with effective votes (`wilson_low`, `wilson_high`, and both
        with `_two_way`). sign_test: counts of prompts whose votes lean to `a` or to `b`, with the two-sided binomial
        `p`; `p_two_way` is that of all votes by prompt and person. prompts, annotators: how many. A figure is None
        where there are too few prompts or people for it (`MIN_CLUSTERS` and `MIN_EFFECTIVE` in `clusters.py`).

    Raises:
        InputError: no votes between them.
    """
    votes = between(ballots, a, b)
    if not votes:
        raise InputError(f"no votes between {a} and {b} yet")
    values = [v.seen_from(a) for v in votes]
    prompts, people = [v.prompt for v in votes], [v.annotator for v in votes]
    rate = sum(values) / len(values)
    intervals: dict[str, float | None] = {}
    wilsons: dict[str, float | None] = {}
    for suffix, clusters in (("", [prompts]), ("_two_way", [prompts, people])):
        intervals |= _ends(cluster_interval(values, *clusters), "", suffix)
        wilsons |= _ends(clustered_wilson(values, *clusters), "wilson_", suffix)
    counts = Counter(values)
    signs = sign_test(list(prompt_means(votes, a).values()))
    return {
        "good": counts[1.0],
        "same": counts[0.5],
        "bad": counts[0.0],
        "gsb": {"mean": 2 * rate - 1, **{k: None if v is None else 2 * v - 1 for k, v in intervals.items()}},
        "win_rate": {"mean": rate, **wilsons, **intervals},
        "sign_test": signs | {"p_two_way": clustered_sign_test(values, prompts, people)},
        "prompts": len(set(prompts)),
        "annotators": len(set(people)),
    }


def _ends(interval: tuple[float, float] | None, prefix: str, suffix: str) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{prefix}low{suffix}": low, f"{prefix}high{suffix}": high}


def prompt_means(votes: Sequence[Ballot], a: str) -> dict[str, float]:
    """Mean value of every prompt's votes, as seen from `a`."""
    values: dict[str, list[float]] = defaultdict(list)
    for vote in votes:
        values[vote.prompt].append(vote.seen_from(a))
    return {prompt: sum(v) / len(v) for prompt, v in values.items()}


def sign_test(means: Sequence[float]) -> dict[str, Any]:
    """Two-sided sign test of prompts: those above one half against those below. Prompts at one half do not count.

    Each prompt counts once, so votes on one prompt may agree. Votes of one person must not; `clustered_sign_test` is
    for that.
    """
    above, below = sum(m > 0.5 for m in means), sum(m < 0.5 for m in means)
    p = float(binomtest(above, above + below).pvalue) if above + below else 1.0
    return {"for": above, "against": below, "even": len(means) - above - below, "p": p}


def by_category(ballots: Sequence[Ballot], a: str, b: str) -> dict[str, dict[str, Any]]:
    """`compare` for every category that has votes."""
    votes = between(ballots, a, b)
    names = sorted({v.category for v in votes if v.category})
    return {name: compare([v for v in votes if v.category == name], a, b) for name in names}


def ratings(ballots: Sequence[Ballot], draws: int = 1000) -> dict[str, dict[str, float | None]]:
    """Bradley-Terry ratings in Elo points with mean 0, best first, with two 95% bootstrap intervals of whole clusters.

    Ties are half a win for both. Every two systems that met share one further tie, so that ratings stay finite.

    Returns:
        By system: elo; `low` and `high` over prompts; `low_two_way` and `high_two_way` over prompts and annotators. An
        interval is None if there are fewer than `MIN_CLUSTERS` prompts or annotators, or if all draws give the system
        the same rating.
    """
    systems = sorted({s for v in ballots for s in (v.first, v.second)})
    place = {s: i for i, s in enumerate(systems)}
    num = len(systems)
    first, second = (np.array([place[getattr(v, side)] for v in ballots]) for side in ("first", "second"))
    values = np.array([v.value for v in ballots])

    def wins(weights: Array) -> Array:
        won = np.bincount(first * num + second, weights * values, num * num)
        lost = np.bincount(second * num + first, weights * (1 - values), num * num)
        return np.asarray((won + lost).reshape(num, num))

    all_wins = wins(np.ones(len(ballots)))
    prior = 0.5 * ((all_wins + all_wins.T) > 0)
    point = bradley_terry(all_wins + prior)
    prompts, people = [v.prompt for v in ballots], [v.annotator for v in ballots]
    rows: dict[str, dict[str, float | None]] = {systems[i]: {"elo": float(point[i])} for i in np.argsort(-point)}
    for suffix, clusters in (("", [prompts]), ("_two_way", [prompts, people])):
        weights = resampled(clusters, draws, stream(0, "ab-ratings"))
        drawn = np.zeros((1, num)) if weights is None else np.array([bradley_terry(wins(w) + prior) for w in weights])
        low, high = np.percentile(drawn, percentiles(max(2, fewest(clusters))), axis=0)
        known = np.ptp(drawn, axis=0) > 1e-6
        for name, i in place.items():
            ends = (float(low[i]), float(high[i])) if known[i] else (None, None)
            rows[name] |= {f"low{suffix}": ends[0], f"high{suffix}": ends[1]}
    return rows


def needed(
    win_rate: float, power: float = 0.8, alpha: float = 0.05, ties: float = 0.0, per_prompt: int = 1, icc: float = ICC
) -> int:
    """How many votes detect a win rate with the given power, by a two-sided test at `alpha`.

    Args:
        win_rate: among decided votes, not 0.5.
        ties: share of votes that are ties, which say nothing.
        per_prompt: votes on each prompt; icc: their correlation. They multiply the number by
            1 + (per_prompt - 1) * icc (Kish's design effect).

    Raises:
        InputError: values out of range.
    """
    if not (0 < win_rate < 1 and win_rate != 0.5 and 0 <= ties < 1 and 0 < power < 1 and per_prompt >= 1):
        raise InputError("power: needs a win rate other than 0.5, a share of ties below 1, and a power below 1")
    num = 4
    while _power(num, win_rate, alpha) < power:
        num = max(num + 1, int(num * 1.05))
    while num > 4 and _power(num - 1, win_rate, alpha) >= power:
        num -= 1
    return math.ceil(num * (1 + (per_prompt - 1) * icc) / (1 - ties))


def _power(num: int, win_rate: float, alpha: float) -> float:
    """Power of the exact two-sided sign test with `num` decided votes."""
    reject = int(binom.ppf(alpha / 2, num, 0.5)) - 1  # the largest count whose lower tail is at most alpha / 2
    while binom.cdf(reject + 1, num, 0.5) <= alpha / 2:
        reject += 1
    if reject < 0:
        return 0.0
    return float(binom.cdf(reject, num, win_rate) + binom.sf(num - reject - 1, num, win_rate))


def visible(num: int, power: float = 0.8, alpha: float = 0.05, per_prompt: int = 1, icc: float = ICC) -> float | None:
    """The smallest win rate above one half that `num` votes without ties detect with the given power.

    Args:
        per_prompt: votes on each prompt; icc: their correlation. `num` counts as
            num / (1 + (per_prompt - 1) * icc) independent votes, as in `needed`.

    Returns:
        The win rate; None if even unanimous votes are too few.
    """
    independent = int(num / (1 + (per_prompt - 1) * icc))
    if _power(independent, 1.0, alpha) < power:
        return None
    low, high = 0.5, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(independent, middle, alpha) >= power else (middle, high)
    return high


def report(ballots: Sequence[Ballot], systems: Sequence[str]) -> dict[str, Any]:
    """All figures of a study: every pair of systems, each category, and ratings if there are more than two systems."""
    pairs = []
    for a, b in combinations(systems, 2):
        if between(ballots, a, b):
            pairs.append({"a": a, "b": b, **compare(ballots, a, b), "categories": by_category(ballots, a, b)})
    return {"votes": len(ballots), "pairs": pairs, "ratings": ratings(ballots) if len(systems) > 2 and pairs else {}}
