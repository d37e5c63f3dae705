"""From noise to pictures with the one step kernel, recording what training replays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewarddance.core.protocols import Generator
from rewarddance.generator import flow


@dataclass(frozen=True)
class Trajectory:
    """A recorded roll-out of B samples over S steps.

    Attributes:
        states: (S + 1, B, ...), states[0] is noise and states[-1] the clean latent.
        times: (S + 1,), from 1 to 0.
        log_probs: (S - 1, B), of every step but the last, which has no noise; None for a deterministic roll-out.
    """

    states: Tensor
    times: Tensor
    log_probs: Tensor | None

    @property
    def final(self) -> Tensor:
        return self.states[-1]


@torch.no_grad()
def sample(generator: Generator, condition: Any, z: Tensor, num_steps: int = 20) -> Tensor:
    """Euler's method on the flow, from noise `z` to a clean latent. NFE = num_steps."""
    return sample_with_preview(generator, condition, z, num_steps, None)[0]


@torch.no_grad()
def sample_with_preview(
    generator: Generator, condition: Any, z: Tensor, num_steps: int, at: int | None
) -> tuple[Tensor, Tensor | None]:
    """As `sample`, with the clean latent x0 = z - t v that step `at` (0 is the first) predicts; None without `at`."""
    ts, preview = generator.times(num_steps), None
    for i, (now, after) in enumerate(zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True)):
        v = generator.velocity(z, now, condition)
        preview = flow.clean(z, v, now) if i == at else preview
        z = flow.step(z, v, now, after).mean
    return z, preview


@torch.no_grad()
def rollout(
    generator: Generator,
    condition: Any,
    z: Tensor,
    num_steps: int,
    noise: float = 0.0,
    rng: torch.Generator | None = None,
) -> Trajectory:
    """Sample and record every state, with log-probabilities where `noise` > 0 (Flow-GRPO's SDE).

    The last step is taken without noise: its density would be that of the picture itself.
    """
    ts = generator.times(num_steps)
    states, log_probs = [z], []
    for i, (now, after) in enumerate(zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True)):
        level = noise if i < num_steps - 1 else 0.0
        policy = flow.step(z, generator.velocity(z, now, condition), now, after, level)
        if level:
            z = policy.sample(torch.randn(z.shape, generator=rng).to(z.device))
            log_probs.append(policy.log_prob(z))
        else:
            z = policy.mean
        states.append(z)
    return Trajectory(torch.stack(states), ts, torch.stack(log_probs) if log_probs else None)
