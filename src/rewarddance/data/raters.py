"""Models of raters: Cohen's kappa of two, and Dawid and Skene's model of many. Pure functions on numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Agreement of two raters beyond chance (Cohen 1960), 1 is perfect and 0 is chance.

    Args:
        first, second: the labels of the same items in the same order.

    Returns:
        None without items, or if both raters always give the same single label.
    """
    if not first:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    left, right = Counter(first), Counter(second)
    expected = sum(left[k] * right[k] for k in left) / len(first) ** 2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def majority(labels: Mapping[str, int], num_classes: int) -> int | None:
    """The label that most raters give an item; None if two labels lead."""
    counts = np.bincount(list(labels.values()), minlength=num_classes)
    best = np.flatnonzero(counts == counts.max())
    return int(best[0]) if len(best) == 1 else None


@dataclass(frozen=True)
class RaterModel:
    """The result of Dawid and Skene's model.

    Attributes:
        posterior: (items, classes) probability of each item's true class, in the order of the items.
        confusion: rater -> (classes, classes), P(label | true class), rows are true classes.
        prior: (classes,) share of each class.
    """

    posterior: Array
    confusion: dict[str, Array]
    prior: Array

    def reliability(self, rater: str) -> float:
        """How much better a rater is than a blind one: 1 for perfect labels, 0 for labels that do not depend on the
        truth, and below 0 for labels that are mostly the opposite (-1 if all are).

        It is Youden's index (1950), averaged over the pairs of classes a, b that occur. With M = P(label | true class),
        the index of a pair is (M[a, a] - M[b, a] + M[b, b] - M[a, b]) / 2.
        """
        m, used = self.confusion[rater], np.flatnonzero(self.prior > 1e-3)
        gaps = [0.5 * (m[a, a] - m[b, a] + m[b, b] - m[a, b]) for i, a in enumerate(used) for b in used[i + 1 :]]
        return float(np.mean(gaps)) if gaps else 0.0


def dawid_skene(
    items: Sequence[Mapping[str, int]], num_classes: int, smoothing: float = 1.0, steps: int = 200
) -> RaterModel:
    """True classes of items and the error rates of raters, by EM (Dawid and Skene, Applied Statistics 28, 1979).

    It starts from the shares of votes. Each row of a confusion matrix is smoothed towards the confusion of all raters
    together by `smoothing` pseudo-votes, so that people with few votes do not count as perfect.

    Args:
        items: for every item the label of each rater, 0 <= label < num_classes.
    """
    raters = sorted({name for item in items for name in item})
    place = {name: i for i, name in enumerate(raters)}
    rows = [(i, place[name], label) for i, item in enumerate(items) for name, label in item.items()]
    item, rater, label = (
        (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
        if rows
        else (np.zeros(0, np.int64) for _ in range(3))
    )
    shares = np.full((len(items), num_classes), 1e-9)
    np.add.at(shares, (item, label), 1.0)
    posterior = shares / shares.sum(1, keepdims=True)
    confusion = np.zeros((len(raters), num_classes, num_classes))
    prior = np.full(num_classes, 1 / num_classes)
    for _ in range(steps):
        counts = np.zeros_like(confusion)
        np.add.at(counts.transpose(0, 2, 1), (rater, label), posterior[item])
        pooled = counts.sum(0) + np.eye(num_classes) + 0.1
        pooled /= pooled.sum(1, keepdims=True)
        confusion = counts + smoothing * pooled
        confusion /= confusion.sum(2, keepdims=True)
        prior = (posterior.sum(0) + 0.1) / (len(items) + 0.1 * num_classes)
        logs = np.tile(np.log(prior), (len(items), 1))
        np.add.at(logs, item, np.log(confusion)[rater, :, label])
        new = np.exp(logs - logs.max(1, keepdims=True))
        new /= new.sum(1, keepdims=True)
        done = bool(np.abs(new - posterior).max(initial=0) < 1e-6)
        posterior = new
        if done:
            break
    return RaterModel(posterior, {name: confusion[i] for name, i in place.items()}, prior)
