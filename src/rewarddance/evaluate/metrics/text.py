"""CLIPScore: how well pictures fit their prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewarddance.core.errors import InputError
from rewarddance.evaluate.metrics.distributions import checked_pair


def clip_score(pictures: ArrayLike, texts: ArrayLike, weight: float = 2.5) -> NDArray[np.float64]:
    """CLIPScore of every picture with its own prompt, (N,): weight * max(cosine, 0) (Hessel et al. 2021, arXiv
    2104.08718, eq. 1).

    Args:
        pictures: CLIP embeddings (N, D); texts: those of their prompts, (N, D).
        weight: 2.5 in the paper; torchmetrics takes 100.

    Raises:
        InputError: other shapes, or an embedding of length 0.
    """
    x, y = checked_pair(pictures, texts, 1)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1) if len(x) == len(y) else None
    if lengths is None or not lengths.all():
        raise InputError("clip score: needs one text for each picture, and no embedding of length 0")
    return np.asarray(weight * ((x * y).sum(1) / lengths).clip(0))
