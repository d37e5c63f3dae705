"""Intervals and tests of a mean of votes that are not independent. Pure functions; no torch, no files.

Votes on one prompt share pictures, and votes of one person share a taste. So a bootstrap resamples whole clusters, and
Wilson's interval and the sign test count effective votes in place of votes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc
from scipy.stats import norm
from scipy.stats import t as student

from rewarddance.core.statistics import wilson
from rewarddance.core.streams import stream

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
DRAWS = 2000
"""Bootstrap draws of an interval."""
MIN_CLUSTERS = 10
"""Clusters of each kind that a bootstrap interval needs."""
MIN_EFFECTIVE = 6
"""Clusters of each kind that `clustered_wilson` and `clustered_sign_test` need. If two systems are equally good and
each person leans to a random side, five people all lean to one side in one study of 16, and six in one of 32."""


def coarsest(clusters: Sequence[Sequence[str]]) -> list[Indices]:
    """The number of every vote's cluster, for each way of clustering that is not finer than another one.

    If every prompt has votes of one person only, clusters of people hold whole prompts, and it is enough to resample
    people (Cameron and Miller, Journal of Human Resources 50, 2015, section IV.A).
    """
    indices = [np.unique(np.asarray(names), return_inverse=True)[1] for names in clusters]
    kept: list[Indices] = []
    for place, index in enumerate(indices):
        others = [*kept, *indices[place + 1 :]]
        if not any(_is_finer(index, other) for other in others):
            kept.append(np.asarray(index, np.int64))
    return kept


def _is_finer(fine: Indices, coarse: Indices) -> bool:
    """Whether every cluster of `fine` lies in one cluster of `coarse`."""
    pairs = np.unique(np.stack([fine, coarse]), axis=1)
    return bool(pairs.shape[1] == fine.max() + 1)


def fewest(clusters: Sequence[Sequence[str]]) -> int:
    """The smallest number of clusters over the ways of clustering."""
    return min(len(set(names)) for names in clusters)


def resampled(clusters: Sequence[Sequence[str]], draws: int, rng: np.random.Generator) -> Array | None:
    """Bootstrap weights of votes, (at most `draws`, votes), from whole clusters. Draws without a vote are left out.

    Args:
        clusters: for each way of clustering, the cluster of every vote.

    Returns:
        None where one way of clustering has fewer than `MIN_CLUSTERS` clusters.
    """
    if fewest(clusters) < MIN_CLUSTERS:
        return None
    weights = np.ones((draws, len(clusters[0])))
    for index in coarsest(clusters):
        num = int(index.max()) + 1
        weights *= rng.multinomial(num, np.full(num, 1 / num), size=draws)[:, index]
    return np.asarray(weights[weights.sum(1) > 0])


def percentiles(num_clusters: int) -> tuple[float, float]:
    """The percentiles of bootstrap draws that make a 95% interval for this number of clusters.

    Plain percentiles are too narrow for few clusters. These are expanded for Student's quantile and for the bias of the
    bootstrap's variance (Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69,
    2015, section 3.4).
    """
    tail = float(norm.sf(np.sqrt(num_clusters / (num_clusters - 1)) * student.ppf(0.975, num_clusters - 1)))
    return 100 * tail, 100 * (1 - tail)


def cluster_interval(values: Sequence[float], *clusters: Sequence[str], seed: int = 0) -> tuple[float, float] | None:
    """95% bootstrap interval of a mean. It resamples whole clusters and takes `percentiles` of the means.

    With two ways of clustering (prompts and people) both are drawn independently, and a vote's weight is the product of
    their counts (the pigeonhole bootstrap of Owen, 2007, which errs on the wide side). If one way is finer than the
    other, only the coarser one is drawn. If all draws have the same mean, for example because all votes agree, the
    interval is Wilson's, with clusters in place of votes.

    Args:
        values: votes in [0, 1].
        clusters: for each way of clustering, the cluster of every vote.

    Returns:
        The interval; None where one way of clustering has fewer than `MIN_CLUSTERS` clusters.
    """
    x: Array = np.asarray(values, np.float64)
    drawn = resampled(clusters, DRAWS, stream(seed, "ab-bootstrap", len(clusters)))
    if drawn is None:
        return None
    means = (drawn @ x) / drawn.sum(1)
    if np.ptp(means) < 1e-9:
        return wilson(float(x.mean()), fewest(clusters))
    low, high = np.percentile(means, percentiles(fewest(clusters)))
    return float(low), float(high)


@dataclass(frozen=True)
class Spread:
    """How far votes in clusters spread around any centre.

    For one way of clustering, let S be the sum of (vote - m) over a cluster. The sum of S^2 over all clusters is
    `own` + 2 `mixed` (mean - m) + `size` (mean - m)^2.

    Attributes:
        mean: of the votes; num: how many; around: sum of (vote - mean)^2.
        own, mixed, size: (ways,) sums over clusters of e^2, e n and n^2, where n is the number of a cluster's votes and
            e is the sum of (vote - mean). The last entry is for the cells, if there are two ways of clustering: a cell
            holds the votes of one person on one prompt.
    """

    mean: float
    num: int
    around: float
    own: Array
    mixed: Array
    size: Array

    @classmethod
    def of(cls, values: Sequence[float], clusters: Sequence[Sequence[str]]) -> Spread:
        x: Array = np.asarray(values, np.float64)
        rest = x - x.mean()
        ways = [np.unique(np.asarray(names), return_inverse=True)[1] for names in clusters]
        if len(ways) == 2:
            ways.append(np.unique(np.stack(ways), axis=1, return_inverse=True)[1].ravel())
        sums: list[tuple[Array, Array]] = [
            (np.asarray(np.bincount(way, rest), np.float64), np.asarray(np.bincount(way), np.float64)) for way in ways
        ]
        own, mixed, size = np.array([(e @ e, e @ n, n @ n) for e, n in sums]).T
        return cls(float(x.mean()), len(x), float(rest @ rest), own, mixed, size)

    def design_effect(self, centre: float) -> float:
        """The variance of the mean over that of independent votes, around a rate that is tested; at least 1.

        With two ways of clustering the variance is that of the first way plus that of the second minus that of the
        cells (Cameron, Gelbach and Miller, Journal of Business and Economic Statistics 29, 2011), and not less than any
        of the three alone. Deviations are from `centre`, not from the mean. With two ways, only the one that this
        changes most counts. So few people who agree do not look certain: if all votes agree, each of the largest
        clusters counts as one vote.
        """
        gap = self.mean - centre
        if gap == 0 and self.around == 0:  # all votes are equal: the limit as the centre approaches their mean
            return max(1.0, float(self.size.max()) / self.num)
        alone = self.around + self.num * gap**2
        shift = 2 * self.mixed * gap + self.size * gap**2
        each = float((self.own + shift).max())
        both = float(self.own[0] + self.own[1] - self.own[2] + shift.max()) if len(shift) == 3 else 0.0
        return max(1.0, both / alone, each / alone)


def clustered_wilson(
    values: Sequence[float], *clusters: Sequence[str], alpha: float = 0.05
) -> tuple[float, float] | None:
    """Wilson's interval (1927) with effective votes: the number of votes over `Spread.design_effect` (Kish 1965).

    It holds the rates m with (mean - m)^2 <= z^2 m (1 - m) / n(m), where n(m) is the number of effective votes around
    m. If every vote is a cluster of its own, this is Wilson's interval.

    Args:
        values: votes in [0, 1].
        clusters: for each way of clustering, the cluster of every vote.

    Returns:
        The interval; None where one way of clustering has fewer than `MIN_EFFECTIVE` clusters.
    """
    if fewest(clusters) < MIN_EFFECTIVE:
        return None
    spread, z = Spread.of(values, clusters), float(norm.isf(alpha / 2))

    def outside(rate: float) -> float:
        allowed = z * z * rate * (1 - rate) * spread.design_effect(rate)
        return spread.num * (spread.mean - rate) ** 2 - allowed

    tiny = 1e-9
    low = 0.0 if spread.mean < 2 * tiny else brentq(outside, 0.0, spread.mean - tiny)
    high = 1.0 if spread.mean > 1 - 2 * tiny else brentq(outside, spread.mean + tiny, 1.0)
    return float(low), float(high)


def clustered_sign_test(values: Sequence[float], *clusters: Sequence[str]) -> float | None:
    """Two-sided p of a sign test on effective votes. Ties do not count.

    The n votes that are no ties count as n / `Spread.design_effect(0.5)` votes. The binomial tail of a number of votes
    that is not whole is the incomplete beta function, as in the interval of Korn and Graubard (Survey Methodology 24,
    1998). If every vote is a cluster of its own, this is the exact sign test.

    Args:
        values: votes: 1, 0, or 0.5 for a tie.
        clusters: for each way of clustering, the cluster of every vote.

    Returns:
        p; 1 if all votes are ties. None if one way of clustering has fewer than `MIN_EFFECTIVE` clusters with decided
        votes.
    """
    if fewest(clusters) < MIN_EFFECTIVE:
        return None
    decided = [i for i, v in enumerate(values) if v != 0.5]
    if not decided:
        return 1.0
    kept = [[names[i] for i in decided] for names in clusters]
    if fewest(kept) < MIN_EFFECTIVE:  # people who only tie do not show which side others take
        return None
    spread = Spread.of([values[i] for i in decided], kept)
    num = spread.num / spread.design_effect(0.5)
    wins = max(spread.mean, 1 - spread.mean) * num
    return float(min(1.0, 2 * betainc(wins, num - wins + 1, 0.5)))
