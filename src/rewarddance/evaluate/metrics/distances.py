"""Perceptual distances between pictures (LPIPS): between before and after of one noise, and among samples of one
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import all_pairs
from rewarddance.evaluate.generator import Samples

Array = NDArray[np.float64]
Distance = Callable[[Sequence[Media], Sequence[Media]], Tensor]
"""N pictures and N others to N distances, (N,)."""


def layer_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """LPIPS with unit weights (Zhang et al. 2018, arXiv 1801.03924, eq. 1 with w = 1), from features of any network.

    Args:
        a, b: features of N pictures each, one tensor (N, places, channels) for every layer.

    Returns:
        (N,) float64: squared distance of features that have unit length at every place, mean over places, sum over
        layers. From 0 to 4 times the number of layers.
    """
    parts = [
        (F.normalize(x.double(), dim=-1) - F.normalize(y.double(), dim=-1)).square().sum(-1).mean(-1)
        for x, y in zip(a, b, strict=True)
    ]
    return torch.stack(parts).sum(0)


@torch.no_grad()
def before_and_after(before: Samples, after: Samples, distance: Distance) -> Array:
    """Distance between the picture before training and the one after, of the same prompt and noise.

    Returns:
        (prompts, noises): how far training moved each picture. A large distance is neither good nor bad.

    Raises:
        InputError: the two are not samples of the same prompts and numbers of noises.
    """
    if before.prompts != after.prompts or [len(r) for r in before.media] != [len(r) for r in after.media]:
        raise InputError("before and after: not samples of the same prompts and noises")
    return np.stack([_distances(distance, a, b) for a, b in zip(before.media, after.media, strict=True)])


@torch.no_grad()
def among_samples(samples: Samples, distance: Distance) -> Array:
    """Mean distance between two samples of one prompt, (prompts,): diversity.

    Raises:
        InputError: a prompt has one sample only.
    """
    if min(len(row) for row in samples.media) < 2:
        raise InputError("distance among samples: needs two or more noises for every prompt")
    means = []
    for row in samples.media:
        pairs = all_pairs(len(row))
        means.append(_distances(distance, [row[i] for i, _ in pairs], [row[j] for _, j in pairs]).mean())
    return np.array(means)


def _distances(distance: Distance, a: Sequence[Media], b: Sequence[Media]) -> Array:
    return np.asarray(distance(list(a), list(b)).double().cpu().numpy()).reshape(len(a))
