"""DiffusionNFT: reward-weighted contrast of two implicit policies on the forward process (arXiv 2509.16117).

It needs no log-probabilities and takes any sampler. The old policy, an exponential average of the trained one, draws
the pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewarddance.align.forward import Noised, frozen_velocity, mean_square
from rewarddance.align.rollout_config import NftConfig
from rewarddance.core.protocols import Tunable

MIN_SCALE = 1e-5
"""Lower bound of the mean absolute error that a squared error is divided by."""
METRICS = ("loss", "frozen_distance", "share_positive")


def positive_share(advantages: Tensor, clamp: float) -> Tensor:
    """r = clip(A / (2 clamp) + 1/2, 0, 1): how much of a picture's loss pulls towards it."""
    return (advantages / (2 * clamp) + 0.5).clamp(0, 1)


def chosen(advantages: Tensor, extremes: int) -> Tensor:
    """Indices within the group of the pictures that an update uses, (P, C), from advantages (P, K).

    Args:
        extremes: use this many pictures with the highest advantages and as many with the lowest. The order is best,
            worst, second best, second worst. 0, or at least half of K, uses all K in their order.
    """
    groups, size = advantages.shape
    if not extremes or 2 * extremes >= size:
        return torch.arange(size).expand(groups, size)
    order = advantages.argsort(1)
    return torch.stack([order[:, -extremes:].flip(1), order[:, :extremes]], 2).flatten(1)


def nft_loss(v: Tensor, v_old: Tensor, batch: Noised, share: Tensor, beta: float, clamp: float) -> Tensor:
    """Loss of every noised picture, (N,): clamp (r l+ + (1 - r) l-) / beta.

    l+ and l- are the squared errors of the clean latents that v+ = beta v + (1 - beta) v_old and
    v- = (1 + beta) v_old - beta v predict, each divided by its own mean absolute error, which carries no gradient.

    Args:
        v, v_old: velocities of the trained and the old policy at `batch.z`, (N, ...).
        share: r of every picture (N,).
    """
    positive, negative = beta * v + (1 - beta) * v_old, (1 + beta) * v_old - beta * v
    losses = []
    for velocity in (positive, negative):
        error = batch.z - batch.times * velocity - batch.x0
        scale = error.detach().abs().flatten(1).mean(1).clamp(min=MIN_SCALE)
        losses.append(mean_square(error) / scale)
    return clamp * (share * losses[0] + (1 - share) * losses[1]) / beta


def nft_step(generator: Tunable, batch: Noised, advantages: Tensor, config: NftConfig) -> dict[str, Tensor]:
    """Loss and metrics of N noised pictures with advantages (N,); the caller calls `backward` on `loss`.

    Returns:
        loss: mean of `nft_loss` plus the weighted pull; frozen_distance: mean |v - v_frozen|^2 (0 without the pull);
        share_positive: mean r.
    """
    with torch.no_grad(), generator.policy("old"):
        v_old = generator.velocity(batch.z, batch.t, batch.condition)
    v = generator.velocity(batch.z, batch.t, batch.condition)
    share = positive_share(advantages, config.clamp)
    loss = nft_loss(v, v_old, batch, share, config.beta, config.clamp).mean()
    distance = torch.zeros((), device=v.device)
    if config.frozen_weight:
        distance = mean_square(v - frozen_velocity(generator, batch)).mean()
    return {
        "loss": loss + config.frozen_weight * distance,
        "frozen_distance": distance.detach(),
        "share_positive": share.mean(),
    }
