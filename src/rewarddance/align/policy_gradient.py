"""Policy gradients on the Gaussian steps of an SDE rollout: the clipped ratio of PPO, used by PPO and GRPO.

Latents, log-probabilities and ratios are fp32 or wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewarddance.align.rollout_config import PolicyGradientConfig
from rewarddance.core.protocols import Generator
from rewarddance.generator import flow
from rewarddance.generator.flow import Gaussian

METRICS = ("loss", "kl", "clipped", "ratio_deviation")


@dataclass(frozen=True)
class Decision:
    """One noisy step of N rollouts, as it was drawn.

    Attributes:
        z, next: states before and after, (N, ...); now, after: times; noise: level of the SDE.
        mean: of the policy that drew `next`; log_prob: of `next` under it, mean over dimensions, (N,).
    """

    z: Tensor
    next: Tensor
    now: float
    after: float
    noise: float
    mean: Tensor
    log_prob: Tensor


def window_start(num_steps: int, config: PolicyGradientConfig, rng: torch.Generator) -> int:
    """The first noisy step, uniform over the window. The last step of a rollout never has noise."""
    low, high = (round(share * num_steps) for share in config.window)
    last = min(high, num_steps - 1) - config.noisy_steps
    return int(torch.randint(low, last + 1, (), generator=rng))


def noise_levels(num_steps: int, start: int, config: PolicyGradientConfig) -> list[float]:
    """A level for every step: `noise` in the window that begins at `start`, else 0."""
    return [config.noise if start <= i < start + config.noisy_steps else 0.0 for i in range(num_steps)]


def log_ratio(policy: Gaussian, decision: Decision, guard: bool) -> Tensor:
    """log of pi(next) / pi_drawn(next), (N,); a mean over dimensions (Flow-GRPO).

    With `guard` the ratio is normalised as in GRPO-Guard: [log ratio + |mu - mu_drawn|^2 / (2 s^2)] s with the step's
    standard deviation s, so that its mean is 0 and its scale the same at every step.
    """
    difference = policy.log_prob(decision.next) - decision.log_prob
    if not guard:
        return difference
    s = policy.std.flatten()[0]
    shift = ((policy.mean - decision.mean).square() / (2 * s**2)).flatten(1).mean(1)
    return (difference + shift) * s


def clipped_loss(log_ratios: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's loss of every rollout, (N,), and whether its gradient was clipped away, (N,).

    -min(rho A, clip(rho, 1 - c, 1 + c) A), with ratios rho (Schulman et al., arXiv 1707.06347).
    """
    ratio = log_ratios.exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(ratio * advantages, bounded * advantages)
    clipped = (ratio != bounded) & (ratio * advantages > bounded * advantages)
    return loss, clipped


def policy_step(
    generator: Generator,
    condition: Any,
    decisions: Sequence[Decision],
    advantages: Tensor,
    config: PolicyGradientConfig,
    kl_weight: float,
    counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """Loss and metrics of N rollouts with advantages (N,), a mean over their noisy steps.

    Args:
        counts: which rollouts the means are taken over, (N,), at least one; all when None.

    Returns:
        loss: clipped loss + kl_weight * kl; kl: mean KL(policy, frozen policy) a dimension; clipped: share of
        rollouts and steps without a gradient; ratio_deviation: mean |ratio - 1|.
    """
    parts: list[Tensor] = []
    chosen = slice(None) if counts is None else counts.to(advantages.device)
    for d in decisions:
        policy = flow.step(d.z, generator.velocity(d.z, d.now, condition), d.now, d.after, d.noise)
        with torch.no_grad(), generator.reference():
            frozen = flow.step(d.z, generator.velocity(d.z, d.now, condition), d.now, d.after, d.noise)
        ratios = log_ratio(policy, d, config.guard)
        loss, clipped = clipped_loss(ratios, advantages, config.clip)
        deviation = (ratios.detach().exp() - 1).abs()
        values = torch.stack([loss, policy.kl(frozen), clipped.to(loss), deviation])
        parts.append(values[:, chosen].mean(1))
    loss, kl, clipped_share, deviation_mean = torch.stack(parts).mean(0)
    return {
        "loss": loss + kl_weight * kl,
        "kl": kl.detach(),
        "clipped": clipped_share.detach(),
        "ratio_deviation": deviation_mean.detach(),
    }
