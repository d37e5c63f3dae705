"""How the parts of a composite become one margin: a weighted sum, or a conservative ensemble."""

from __future__ import annotations

import torch
from torch import Tensor

from rewarddance.reward.composite_config import Combine


def combined(z: Tensor, weights: Tensor, how: Combine = "sum", std_weight: float = 1.0) -> Tensor:
    """One margin for every item, (N,), from standardised values (N, K). Differentiable.

    `minimum` and `mean_minus_std` are the worst case and the uncertainty penalty of ensembles against
    over-optimisation (Coste et al., arXiv 2310.02743). Their value for a swapped pair is `combined(-z, ...)`, which is
    not the negative of their value for the pair.

    Args:
        z: finite; an item's values of weight 0 have no influence.
        weights: (N, K), 0 or more. `minimum` asks only whether a weight is above 0.
        std_weight: k of mean - k * standard deviation. Both are weighted.

    Returns:
        0 for an item whose weights are all 0.
    """
    share = weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
    mean = (share * z).sum(1)
    if how == "sum":
        return mean
    if how == "minimum":
        return torch.where(share.any(1), z.masked_fill(share == 0, torch.inf).amin(1), mean)
    variance = (share * (z - mean[:, None]).square()).sum(1)
    spread = variance > 0
    # the square root has no finite gradient at 0, so it never sees a 0
    std = torch.where(spread, torch.where(spread, variance, 1.0).sqrt(), 0.0)
    return mean - std_weight * std
