"""Intervals: paired and clustered bootstrap. One random stream a call, so figures repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from rewarddance.core.streams import stream


@dataclass(frozen=True)
class Interval:
    """A mean with a 95% bootstrap interval (percentile)."""

    mean: float
    ci_low: float
    ci_high: float

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `inconclusive` where the interval holds 0."""
        if self.ci_low > 0:
            return "better"
        return "worse" if self.ci_high < 0 else "inconclusive"

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.ci_low:+.3f}, {self.ci_high:+.3f}]"


def bootstrap(values: ArrayLike, *, num: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values` (first axis: independent units, such as prompts; other axes are averaged within a unit).

    Raises:
        ValueError: no values, or NaN among them.
    """
    x: NDArray[np.float64] = np.asarray(values, np.float64)
    if x.size == 0 or np.isnan(x).any():
        raise ValueError("bootstrap needs values and no NaN")
    units = x.reshape(len(x), -1).mean(1)
    rows = stream(seed, "bootstrap").integers(len(units), size=(num, len(units)))
    low, high = np.percentile(units[rows].mean(1), [2.5, 97.5])
    return Interval(float(units.mean()), float(low), float(high))


def paired_bootstrap(after: ArrayLike, before: ArrayLike, *, num: int = 2000, seed: int = 0) -> Interval:
    """Mean of `after - before`, with units resampled together (same prompts and noises on both sides)."""
    return bootstrap(np.asarray(after, np.float64) - np.asarray(before, np.float64), num=num, seed=seed)


def change_from_best(looks: ArrayLike, *, num: int = 2000, seed: int = 0) -> Interval:
    """Change from the best of K looks at the same units to the last one, `looks` (K, units).

    The best look is chosen by its noisy mean, so it flatters itself, and an ordinary interval of the fall since then
    calls falls that are none. Here the choice is part of the resampling: the interval is `last - best` plus
    `max_k e_k - e_last`, e being the errors of the looks' means (a max-type simultaneous interval).
    """
    x: NDArray[np.float64] = np.asarray(looks, np.float64)
    means = x.mean(1)
    rows = stream(seed, "change-from-best").integers(x.shape[1], size=(num, x.shape[1]))
    errors = x[:, rows].mean(2) - means[:, None]
    luck = errors.max(0) - errors[-1]
    change = means[-1] - means.max()
    low, high = np.percentile(luck, [2.5, 97.5])
    return Interval(float(change), float(change + low), float(change + high))


def over_runs(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over a few runs (seeds, folds) with Student's 95% interval; of a single run there is no interval.

    A bootstrap over three runs covers 74 in 100 instead of 95.
    """
    x: NDArray[np.float64] = np.asarray(values, np.float64)
    if len(x) < 2:
        return {"mean": float(x.mean()), "ci_low": None, "ci_high": None}
    half = float(student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return {"mean": float(x.mean()), "ci_low": float(x.mean()) - half, "ci_high": float(x.mean()) + half}


def two_way_bootstrap(values: ArrayLike, *, num: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values` (units, repeats, ...), with units and repeats resampled, each as a whole and by itself.

    For a study of several training seeds: says what another draw of prompts *and* of seeds would give, so it is wider
    than `bootstrap`, and with few seeds it is rough.

    Raises:
        ValueError: no values, or NaN among them.
    """
    x: NDArray[np.float64] = np.asarray(values, np.float64)
    if x.size == 0 or np.isnan(x).any():
        raise ValueError("bootstrap needs values and no NaN")
    x = x.reshape(*x.shape[:2], -1).mean(2)
    rng = stream(seed, "two-way-bootstrap")
    rows = rng.integers(x.shape[0], size=(num, x.shape[0]))
    columns = rng.integers(x.shape[1], size=(num, x.shape[1]))
    means = [x[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(x.mean()), float(low), float(high))


def grouped_interval(values: Sequence[tuple[str, float]]) -> list[float]:
    """95% bootstrap interval of the mean of (group, value) pairs; groups are drawn, with all that is theirs.

    For pairs of pictures of one prompt, say: they share pictures, so prompts are the independent units.
    """
    place = {group: i for i, group in enumerate(sorted({g for g, _ in values}))}
    sums = np.zeros((len(place), 2))
    for group, value in values:
        sums[place[group]] += (value, 1)
    rows = stream(0, "measure-judge").integers(len(place), size=(1000, len(place)))
    drawn = sums[rows].sum(1)
    return [float(v) for v in np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])]
