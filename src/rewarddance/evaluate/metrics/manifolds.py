"""Separate metrics of fidelity and variety: improved precision and recall, the Vendi score, and mean distance."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist, pdist

from rewarddance.core.errors import InputError
from rewarddance.evaluate.metrics.distributions import checked_features, checked_pair

Array = NDArray[np.float64]


def precision_and_recall(samples: ArrayLike, reference: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of samples against a reference set (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    A set's manifold is the union of balls around its items; a ball reaches to the item's k-th nearest neighbour in the
    same set.

    Args:
        samples: features (N, D); reference: features (M, D).

    Returns:
        Precision: share of samples on the reference set's manifold. Recall: share of the reference set on the samples'
        manifold.

    Raises:
        InputError: see `checked_pair`; k or fewer items in a set.
    """
    x, y = checked_pair(samples, reference)
    if min(len(x), len(y)) <= k:
        raise InputError(f"precision and recall: {k} neighbours need {k + 1} or more pictures in each set")
    across = cdist(x, y)
    precision = (across <= _radii(y, k)[None]).any(1).mean()
    recall = (across <= _radii(x, k)[:, None]).any(0).mean()
    return float(precision), float(recall)


def _radii(x: Array, k: int) -> Array:
    """Distance of every item to its k-th nearest neighbour, (N,); the item itself is the neighbour number 0."""
    return np.asarray(np.partition(cdist(x, x), k, axis=1)[:, k])


def vendi_score(features: ArrayLike) -> float:
    """Vendi score of one set: its effective number of different items, from 1 to N (Friedman and Dieng 2023,
    arXiv 2210.02410).

    It is the exponential of the entropy of the eigenvalues of the cosine kernel over N. It uses no reference set, so it
    is high for noise too.

    Args:
        features: (N, D).

    Raises:
        InputError: see `checked_features`; an item whose features are all 0 has no direction.
    """
    x = checked_features(features, 1)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not norms.all():
        raise InputError("vendi score: the features of an item are all 0")
    values = np.linalg.eigvalsh((x / norms) @ (x / norms).T / len(x))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_distance(features: ArrayLike) -> float:
    """Mean Euclidean distance between two different items of one set; 0 or more, more is more diverse.

    Args:
        features: (N, D).

    Raises:
        InputError: see `checked_features`; fewer than two items.
    """
    return float(pdist(checked_features(features)).mean())
