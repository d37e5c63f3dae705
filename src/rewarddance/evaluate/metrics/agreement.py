"""Agreement of scores with people or an exact measure: accuracy with ties, and rank correlations."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kendalltau

from rewarddance.core.errors import InputError
from rewarddance.core.preferences import all_pairs
from rewarddance.core.statistics import Interval, bootstrap_statistic
from rewarddance.evaluate.calibration import three_way
from rewarddance.evaluate.judge import spearman

Array = NDArray[np.float64]


def pairwise_labels(scores: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    """All pairs of K items that are compared with one another: differences of scores, and labels.

    Args:
        scores: (K,) by the metric; truth: (K,) by people or an exact measure.

    Returns:
        Margins and labels, (K (K - 1) / 2,) each. A label is 1 where the first item is truly better, 0 where the second
        is, 0.5 where they are equal.
    """
    s, t = _checked(scores, truth)
    pairs = np.array(all_pairs(len(s)), int).reshape(-1, 2)
    return s[pairs[:, 0]] - s[pairs[:, 1]], (np.sign(t[pairs[:, 0]] - t[pairs[:, 1]]) + 1) / 2


def pairwise_accuracy(margins: ArrayLike, labels: ArrayLike, threshold: float) -> float:
    """Share of pairs that are ordered right, where a tie is an answer too (Deutsch et al. 2023, arXiv 2305.14324):
    (concordant pairs + ties on both sides) / all pairs.

    Args:
        margins: (N,); labels: (N,), the share of raters who prefer the first item (`calibration.TIE` are ties).
        threshold: |margin| up to which the metric calls a tie. Fit it on *other* pairs, with
            `evaluate.calibration.fit_tie_threshold`.

    Raises:
        InputError: no pairs, or NaN among them.
    """
    m, l = _checked(margins, labels)
    return three_way(m, l, threshold)


def spearman_rho(scores: ArrayLike, truth: ArrayLike) -> Interval:
    """Spearman's rank correlation of (N,) scores with the truth, and a bootstrap interval over the items.

    It is 0 where one side does not vary. Ties have their mean rank.

    Raises:
        InputError: no items, or NaN among them.
    """
    s, t = _checked(scores, truth)
    return bootstrap_statistic(lambda rows: spearman(s[rows], t[rows]), len(s))


def kendall_tau_b(scores: ArrayLike, truth: ArrayLike) -> Interval:
    """Kendall's tau-b of (N,) scores with the truth, which corrects for ties, and a bootstrap interval over the items.

    It is 0 where one side does not vary.

    Raises:
        InputError: no items, or NaN among them.
    """
    s, t = _checked(scores, truth)

    def tau(rows: NDArray[np.int64]) -> float:
        a, b = s[rows], t[rows]
        return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(kendalltau(a, b, variant="b").statistic)

    return bootstrap_statistic(tau, len(s))


def _checked(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x) or np.isnan(x).any() or np.isnan(y).any():
        raise InputError(f"agreement: needs two lists of equal length without NaN, got {x.shape} and {y.shape}")
    return x, y
