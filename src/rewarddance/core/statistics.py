"""Intervals (bootstrap: paired, clustered, two-way; half-sample, Student, Wilson), Bradley-Terry ratings, the fit of a
temperature.

Every call draws from a random stream of its own, so equal inputs give equal figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import chi2, norm
from scipy.stats import t as student

from rewarddance.core.streams import stream

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval. The functions below say how each interval is made."""

    mean: float
    ci_low: float
    ci_high: float

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `inconclusive` if the interval contains 0."""
        if self.ci_low > 0:
            return "better"
        return "worse" if self.ci_high < 0 else "inconclusive"

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.ci_low:+.3f}, {self.ci_high:+.3f}]"


def _checked(values: ArrayLike) -> Array:
    x: Array = np.asarray(values, np.float64)
    if x.size == 0 or np.isnan(x).any():
        raise ValueError("bootstrap needs values and no NaN")
    return x


def bootstrap(values: ArrayLike, *, num: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values` with its percentile interval. The first axis holds independent units, such as prompts; a unit's
    other axes are averaged.

    Raises:
        ValueError: no values, or NaN among them.
    """
    units = _checked(values).reshape(len(np.asarray(values)), -1).mean(1)
    rows = stream(seed, "bootstrap").integers(len(units), size=(num, len(units)))
    low, high = np.percentile(units[rows].mean(1), [2.5, 97.5])
    return Interval(float(units.mean()), float(low), float(high))


def paired_bootstrap(after: ArrayLike, before: ArrayLike, *, num: int = 2000, seed: int = 0) -> Interval:
    """Mean of `after - before`; both sides of a unit are resampled together."""
    return bootstrap(np.asarray(after, np.float64) - np.asarray(before, np.float64), num=num, seed=seed)


def bootstrap_statistic(
    statistic: Callable[[NDArray[np.int64]], float], num_units: int, *, num: int = 1000, seed: int = 0
) -> Interval:
    """A statistic that is not a mean, such as a rank correlation. `Interval.mean` is its value on all units.

    Args:
        statistic: takes indices of units; an index may occur several times.
    """
    rows = stream(seed, "bootstrap-statistic").integers(num_units, size=(num, num_units))
    low, high = np.percentile([statistic(r) for r in rows], [2.5, 97.5])
    return Interval(float(statistic(np.arange(num_units))), float(low), float(high))


def half_sample_interval(
    statistic: Callable[[NDArray[np.int64]], float], num_units: int, *, num: int = 100, seed: int = 0
) -> Interval:
    """For a statistic that repeated units would change, such as one of nearest neighbours or a distance of covariances.

    Halves of the units are drawn without replacement. The deviation of the statistic over the halves is its standard
    error on all units (delete-half jackknife; Shao and Wu 1989, exact for means), and the interval is the value plus
    and minus 1.96 standard errors. A bias that depends on the number of units does not move the interval.

    Args:
        statistic: takes indices of units, none of them twice.

    Raises:
        ValueError: fewer than four units.
    """
    if num_units < 4:
        raise ValueError(f"half-samples need four units or more, got {num_units}")
    rng, value = stream(seed, "half-samples"), float(statistic(np.arange(num_units)))
    halves = [statistic(np.sort(rng.permutation(num_units)[: num_units // 2])) for _ in range(num)]
    # the variance of a mean of m of n units is s^2 (1/m - 1/n), which is s^2/n for even n
    error = float(np.std(halves, ddof=1)) * float(np.sqrt((num_units // 2) / (num_units - num_units // 2)))
    return Interval(value, value - 1.96 * error, value + 1.96 * error)


def students_interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over a few runs (seeds, folds) with Student's 95% interval, which is None for a single run.

    A bootstrap over three runs would cover the mean in 74 cases of 100 instead of 95.
    """
    x: Array = np.asarray(values, np.float64)
    if len(x) < 2:
        return {"mean": float(x.mean()), "ci_low": None, "ci_high": None}
    half = float(student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return {"mean": float(x.mean()), "ci_low": float(x.mean()) - half, "ci_high": float(x.mean()) + half}


def smallest_difference(differences: Sequence[float], power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest true mean that a paired t-test on as many differences of this spread finds with this power.

    The test is two-sided with n - 1 degrees of freedom. Its power at a mean d is the probability that
    |Z + d sqrt(n) / s| > t sqrt(V / (n - 1)), for a normal Z and a chi-square V. The spread s is estimated from the
    same differences, so the result is rough if they are few.

    Args:
        differences: one for each pair of runs, such as the runs of two arms with one seed.

    Returns:
        None for fewer than two differences; 0 if they are all equal.
    """
    x: Array = np.asarray(differences, np.float64)
    if len(x) < 2:
        return None
    error = float(x.std(ddof=1) / np.sqrt(len(x)))
    freedom = len(x) - 1
    critical = float(student.ppf(1 - alpha / 2, freedom))
    quantiles = (np.arange(10_000) + 0.5) / 10_000  # midpoints: the mean over them is the integral over V
    # this is the noncentral t distribution; SciPy's `nct` gives NaN far in a tail
    bounds = critical * np.sqrt(chi2.ppf(quantiles, freedom) / freedom)

    def lacking(shift: float) -> float:
        return float((norm.sf(bounds - shift) + norm.cdf(-bounds - shift)).mean()) - power

    upper = critical
    while lacking(upper) < 0:
        upper *= 2
    return error * float(brentq(lacking, 0.0, upper, xtol=1e-6))


def two_way_bootstrap(values: ArrayLike, *, num: int = 2000, seed: int = 0) -> Interval:
    """Mean of `values` (units, repeats, ...); units are resampled, and so are repeats, independently.

    For a study of several training seeds. It shows how far other prompts *and* other seeds would move the mean. It is
    wider than `bootstrap`, and rough for few seeds.

    Raises:
        ValueError: no values, or NaN among them.
    """
    x = _checked(values)
    x = x.reshape(*x.shape[:2], -1).mean(2)
    rng = stream(seed, "two-way-bootstrap")
    rows = rng.integers(x.shape[0], size=(num, x.shape[0]))
    columns = rng.integers(x.shape[1], size=(num, x.shape[1]))
    means = [x[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(x.mean()), float(low), float(high))


def grouped_interval(values: Sequence[tuple[str, float]]) -> list[float]:
    """95% bootstrap interval of the mean of (group, value) pairs; whole groups are resampled.

    For pairs of pictures, for example: pairs of one prompt share pictures, so prompts are the independent units.
    """
    index = {group: i for i, group in enumerate(sorted({g for g, _ in values}))}
    sums = np.zeros((len(index), 2))
    for group, value in values:
        sums[index[group]] += (value, 1)
    rows = stream(0, "measure-judge").integers(len(index), size=(1000, len(index)))
    drawn = sums[rows].sum(1)
    return [float(v) for v in np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])]


def wilson(rate: float, num: int, alpha: float = 0.05) -> tuple[float, float]:
    """Wilson's interval of a share (1927), for independent votes; (0, 1) without votes.

    Args:
        rate: successes / `num`; ties may count as half a success.
    """
    if num == 0:
        return 0.0, 1.0
    z = float(norm.isf(alpha / 2))
    middle = (rate + z * z / (2 * num)) / (1 + z * z / num)
    half = z * math.sqrt(rate * (1 - rate) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    return max(0.0, middle - half), min(1.0, middle + half)


def share(successes: int, trials: int) -> dict[str, float | int | None]:
    """`share` of successes with the `low` and `high` end of its 95% Wilson interval, and `num` trials; None without
    trials.
    """
    if trials == 0:
        return {"share": None, "low": None, "high": None, "num": 0}
    low, high = wilson(successes / trials, trials)
    return {"share": successes / trials, "low": low, "high": high, "num": trials}


ELO = 400 / math.log(10)
"""Elo points of one unit of log-odds."""


def bradley_terry(wins: Array, steps: int = 50) -> Array:
    """(N,) Elo ratings with mean 0 from (N, N) wins (of the row's system), by Newton steps on the log-likelihood
    (Bradley and Terry 1952).

    A tie is half a win for both. Systems that are not linked by any vote keep their distance of 0. A system that never
    lost has no finite rating; the steps are bounded, so its rating is then large.
    """
    num = len(wins)
    games = wins + wins.T
    theta = np.zeros(num)
    for _ in range(steps):
        p = 1 / (1 + np.exp(theta[None] - theta[:, None]))
        gradient = (wins - games * p).sum(1)
        weight = games * p * (1 - p)
        hessian = np.diag(weight.sum(1)) - weight
        step = np.linalg.lstsq(hessian + np.full((num, num), 1 / num), gradient, rcond=None)[0]
        step *= min(1.0, 2.0 / max(np.abs(step).max(), 1e-300))
        theta = theta + step
        if np.abs(step).max() < 1e-10:
            break
    return np.asarray(ELO * (theta - theta.mean()))


MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Bounds of `fit_temperature`."""


def fit_temperature(margins: Array, labels: Array) -> float:
    """The T for which sigmoid(margin / T) makes the labels likeliest (Guo et al., arXiv 1706.04599).

    Args:
        margins: (N,) log-odds; labels: (N,) in [0, 1], the share of raters who prefer the candidate.
    """

    def loss(log_t: float) -> float:
        z = margins / np.exp(log_t)
        return float(np.mean(np.logaddexp(0, -z) * labels + np.logaddexp(0, z) * (1 - labels)))

    bounds = np.log([MIN_TEMPERATURE, MAX_TEMPERATURE])
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
