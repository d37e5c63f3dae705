"""Statistics of blinded comparisons between systems. Pure functions on votes; no torch, no files.

Votes on one prompt share pictures, and votes of one person share a taste. So intervals resample prompts, or prompts and
people together, and the sign test counts each prompt once.
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
from rewarddance.core.statistics import bradley_terry, wilson
from rewarddance.core.streams import stream

Array = NDArray[np.float64]
DRAWS = 2000
"""Bootstrap draws of an interval."""
MIN_CLUSTERS = 10
"""Clusters of each kind that a bootstrap interval needs; with fewer it is far too narrow."""
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


def cluster_interval(values: Sequence[float], *clusters: Sequence[str], seed: int = 0) -> tuple[float, float] | None:
    """95% bootstrap interval of a mean. It resamples whole clusters.

    With two ways of clustering (prompts and people) both are drawn independently, and a vote's weight is the product of
    their counts (the pigeonhole bootstrap of Owen, 2007, which errs on the wide side). If all draws have the same mean,
    for example because all votes agree, the interval is Wilson's, with clusters in place of votes.

    Args:
        values: votes in [0, 1].
        clusters: for each way of clustering, the cluster of every vote.

    Returns:
        The interval; None if one way of clustering has fewer than `MIN_CLUSTERS` clusters.
    """
    x: Array = np.asarray(values, np.float64)
    drawn = resampled(clusters, DRAWS, stream(seed, "ab-bootstrap", len(clusters)))
    if drawn is None:
        return None
    means = (drawn @ x) / drawn.sum(1)
    if np.ptp(means) < 1e-9:
        return wilson(float(x.mean()), min(len(set(names)) for names in clusters))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def resampled(clusters: Sequence[Sequence[str]], draws: int, rng: np.random.Generator) -> Array | None:
    """Bootstrap weights of votes, (at most `draws`, votes), from whole clusters. Draws without a vote are left out.

    Args:
        clusters: for each way of clustering, the cluster of every vote.

    Returns:
        None if one way of clustering has fewer than `MIN_CLUSTERS` clusters.
    """
    indices = [np.unique(np.asarray(names), return_inverse=True)[1] for names in clusters]
    counts = [int(index.max()) + 1 for index in indices]
    if min(counts) < MIN_CLUSTERS:
        return None
    weights = np.ones((draws, len(indices[0])))
    for index, num in zip(indices, counts, strict=True):
        weights *= rng.multinomial(num, np.full(num, 1 / num), size=draws)[:, index]
    return np.asarray(weights[weights.sum(1) > 0])


def compare(ballots: Sequence[Ballot], a: str, b: str) -> dict[str, Any]:
    """`a` against `b`.

    Returns:
        good, same, bad: votes for `a`, ties, votes for `b`. gsb: (good - bad) / all, in [-1, 1], with intervals by
        prompt (`low`, `high`) and by prompt and annotator (`low_two_way`, `high_two_way`), which are None if there are
        fewer than `MIN_CLUSTERS` prompts or annotators. win_rate: ties count half; with Wilson's interval, which
        takes votes as independent, and the same two intervals. sign_test: counts of prompts whose votes lean to `a` or
        to `b`, and the two-sided binomial p. prompts, annotators: how many.

    Raises:
        InputError: no votes between them.
    """
    votes = between(ballots, a, b)
    if not votes:
        raise InputError(f"no votes between {a} and {b} yet")
    values = [v.seen_from(a) for v in votes]
    prompts, people = [v.prompt for v in votes], [v.annotator for v in votes]
    rate = sum(values) / len(values)
    none = (None, None)
    by_prompt = cluster_interval(values, prompts) or none
    by_both = cluster_interval(values, prompts, people) or none
    counts = Counter(values)
    low, high = wilson(rate, len(values))
    intervals = {"low": by_prompt[0], "high": by_prompt[1], "low_two_way": by_both[0], "high_two_way": by_both[1]}
    return {
        "good": counts[1.0],
        "same": counts[0.5],
        "bad": counts[0.0],
        "gsb": {"mean": 2 * rate - 1, **{k: None if v is None else 2 * v - 1 for k, v in intervals.items()}},
        "win_rate": {"mean": rate, "wilson_low": low, "wilson_high": high, **intervals},
        "sign_test": sign_test(list(prompt_means(votes, a).values())),
        "prompts": len(set(prompts)),
        "annotators": len(set(people)),
    }


def prompt_means(votes: Sequence[Ballot], a: str) -> dict[str, float]:
    """Mean value of every prompt's votes, as seen from `a`."""
    values: dict[str, list[float]] = defaultdict(list)
    for vote in votes:
        values[vote.prompt].append(vote.seen_from(a))
    return {prompt: sum(v) / len(v) for prompt, v in values.items()}


def sign_test(means: Sequence[float]) -> dict[str, Any]:
    """Two-sided sign test of prompts: those above one half against those below. Prompts at one half do not count."""
    above, below = sum(m > 0.5 for m in means), sum(m < 0.5 for m in means)
    p = float(binomtest(above, above + below).pvalue) if above + below else 1.0
    return {"for": above, "against": below, "even": len(means) - above - below, "p": p}


def by_category(ballots: Sequence[Ballot], a: str, b: str) -> dict[str, dict[str, Any]]:
    """`compare` for every category that has votes."""
    votes = between(ballots, a, b)
    names = sorted({v.category for v in votes if v.category})
    return {name: compare([v for v in votes if v.category == name], a, b) for name in names}


def ratings(ballots: Sequence[Ballot], draws: int = 300) -> dict[str, dict[str, float | None]]:
    """Bradley-Terry ratings in Elo points with mean 0, best first, with two 95% bootstrap intervals.

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
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
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
