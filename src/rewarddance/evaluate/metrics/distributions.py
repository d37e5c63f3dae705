"""Distances between two sets of pictures, from their features: FID, KID and CMMD. float64 throughout.

Each compares a set of samples with a *named reference set*. Figures are comparable only with equal features, equal
reference sets and equal numbers of samples: FID falls as the number grows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewarddance.core.errors import InputError
from rewarddance.core.streams import stream

Array = NDArray[np.float64]


def checked_features(features: ArrayLike, least: int = 2) -> Array:
    """Features as float64, (N, D).

    Raises:
        InputError: another shape, fewer than `least` rows, or a value that is not finite.
    """
    x: Array = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < least:
        raise InputError(f"features: needs shape (N, D) with N of {least} or more, got {x.shape}")
    if not np.isfinite(x).all():
        raise InputError("features: some values are not finite")
    return x


def checked_pair(samples: ArrayLike, reference: ArrayLike, least: int = 2) -> tuple[Array, Array]:
    """Features of two sets, (N, D) and (M, D).

    Raises:
        InputError: as `checked_features`, or the two sets differ in D.
    """
    x, y = checked_features(samples, least), checked_features(reference, least)
    if x.shape[1] != y.shape[1]:
        raise InputError(f"features: samples have {x.shape[1]} dimensions and the reference set has {y.shape[1]}")
    return x, y


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and unbiased covariance (D, D) of features."""

    mean: Array
    covariance: Array

    @classmethod
    def of(cls, features: ArrayLike) -> Moments:
        x = checked_features(features)
        return cls(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two Gaussians, |m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)); 0 or more.

    The last trace is the sum of the singular values of A^(1/2) B^(1/2). So it needs no root of a matrix that is not
    symmetric, and singular covariances (fewer pictures than dimensions) are no special case.
    """
    gap = a.mean - b.mean
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    # rounding can make it a little less than 0; np.maximum keeps a NaN
    return float(np.maximum(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross, 0.0))


def _root(covariance: Array) -> Array:
    """Symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(values.clip(0))) @ vectors.T)


def frechet_inception_distance(samples: ArrayLike, reference: ArrayLike) -> float:
    """FID of samples against a reference set (Heusel et al. 2017, arXiv 1706.08500, eq. 6); 0 or more, less is nearer.

    Args:
        samples: features (N, D); reference: features (M, D). The name says Inception; any features will do.

    Raises:
        InputError: see `checked_pair`.
    """
    x, y = checked_pair(samples, reference)
    gap, a, b = x.mean(0) - y.mean(0), _factor(x), _factor(y)
    # tr((A B)^(1/2)) is the sum of the singular values of a b^T, which is small where either set is
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(np.maximum(gap @ gap + (a**2).sum() + (b**2).sum() - 2 * cross, 0.0))  # as in `frechet_distance`


def _factor(x: Array) -> Array:
    """F with F^T F = the unbiased covariance of features (N, D), (min(N, D), D)."""
    centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return np.asarray(centred if len(x) <= x.shape[1] else np.linalg.qr(centred, mode="r"))


def polynomial_mmd(x: Array, y: Array) -> float:
    """Unbiased squared MMD of (N, D) and (M, D) with the kernel (x.y / D + 1)^3; it may be negative."""

    def kernel(a: Array, b: Array) -> Array:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    def off_diagonal_mean(table: Array) -> float:
        return float((table.sum() - np.trace(table)) / (len(table) * (len(table) - 1)))

    return off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * float(kernel(x, y).mean())


def kernel_inception_distance(
    samples: ArrayLike, reference: ArrayLike, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID of samples against a reference set (Binkowski et al. 2018, arXiv 1801.01401, section 4); less is nearer.

    Args:
        samples: features (N, D); reference: features (M, D).
        subset_size: rows of each subset, drawn without replacement; min(N, M) where that is less.

    Returns:
        Mean and standard deviation over the subsets of the unbiased estimate, which has mean 0 for equal distributions.
        The deviation measures subsets, not the mean: with `subset_size` near N it is near 0.

    Raises:
        InputError: see `checked_pair`.
    """
    x, y = checked_pair(samples, reference)
    size, rng = min(subset_size, len(x), len(y)), stream(seed, "kid")
    values = [
        polynomial_mmd(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(num_subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def cmmd(samples: ArrayLike, reference: ArrayLike, *, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """CMMD of samples against a reference set (Jayasumana et al. 2024, arXiv 2401.09603); less is nearer.

    `scale` times the squared MMD with the kernel exp(-|x - y|^2 / (2 sigma^2)). Pairs of an item with itself count, as
    in the authors' code, so it is 0 or more.

    Args:
        samples: embeddings (N, D); reference: embeddings (M, D). The paper takes CLIP's, at unit length.

    Raises:
        InputError: see `checked_pair`.
    """
    x, y = checked_pair(samples, reference, 1)
    kernels = [np.exp(-squared_distances(a, b) / (2 * sigma**2)).mean() for a, b in ((x, x), (y, y), (x, y))]
    return float(scale * np.maximum(kernels[0] + kernels[1] - 2 * kernels[2], 0.0))  # as in `frechet_distance`


def squared_distances(x: Array, y: Array) -> Array:
    """Squared Euclidean distances (N, M) of (N, D) and (M, D).

    Rows are centred first, which changes no distance: large means would cost digits.
    """
    centre = y.mean(0)
    a, b = x - centre, y - centre
    return np.asarray(((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T).clip(0))
