"""Rollouts of a step: groups of pictures, drawn by a policy and scored by a judge.

Everything that is random about a prompt comes from its own streams. So a group does not depend on the batch and the
process in which it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewarddance.align.policy_gradient import Decision
from rewarddance.core.media import Media
from rewarddance.core.protocols import Generator
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Request
from rewarddance.generator.trace import trace


@dataclass(frozen=True)
class Rollouts:
    """P' groups of K pictures of one pass.

    Attributes:
        places: places of the groups in the step's batch; prompts: P' of them.
        condition: the embedded prompts of the P' K rows.
        latents: clean latents (P' K, ...), groups one after the other; pictures: decoded, P' lists of K.
        decisions: the noisy steps; empty for a deterministic rollout.
    """

    places: tuple[int, ...]
    prompts: tuple[Request, ...]
    condition: Any
    latents: Tensor
    pictures: list[list[Media]]
    decisions: tuple[Decision, ...] = ()

    def take(self, groups: Sequence[int]) -> Rollouts:
        """Some of the groups, without conditions and decisions."""
        size = len(self.latents) // len(self.prompts)
        rows = [g * size + i for g in groups for i in range(size)]
        return Rollouts(
            tuple(self.places[g] for g in groups),
            tuple(self.prompts[g] for g in groups),
            None,
            self.latents[rows],
            [self.pictures[g] for g in groups],
        )


def streams_of(seed: int, name: str, index: int, places: Sequence[int]) -> list[torch.Generator]:
    """A random stream for each group of step `index`."""
    return [torch.Generator().manual_seed(seed_of(seed, name, index, place)) for place in places]


def noise_of(generator: Generator, num: int, rngs: Sequence[torch.Generator]) -> Tensor:
    """Standard normal latents for `num` rows of every group, (G num, ...)."""
    return torch.cat([generator.noise(num, rng) for rng in rngs])


@torch.no_grad()
def roll_out(
    generator: Generator,
    prompts: Sequence[Request],
    places: Sequence[int],
    size: int,
    num_steps: int,
    rngs: Sequence[torch.Generator],
    levels: Sequence[float] | None = None,
    shared_start: bool = False,
) -> Rollouts:
    """Draw `size` pictures of every prompt in one pass.

    Args:
        rngs: a random stream for each prompt.
        levels: noise of every step; None for the ODE.
        shared_start: the pictures of a group share one noise, and the steps before the first noisy one are computed
            once.
    """
    times = generator.times(num_steps)
    levels = [0.0] * num_steps if levels is None else list(levels)
    rows = [p for p in prompts for _ in range(size)]
    condition = generator.condition(rows)
    start = 0
    if shared_start:
        start = next(i for i, level in enumerate(levels) if level)
        z = noise_of(generator, 1, rngs)
        for step in trace(generator, generator.condition(prompts), z, times[: start + 1]):
            z = step.next
        z = z.repeat_interleave(size, 0)
    else:
        z = noise_of(generator, size, rngs)
    decisions = []
    for step in trace(generator, condition, z, times, noise=levels, rng=rngs, start=start):
        z = step.next
        if level := levels[step.index]:
            log_prob, mean = step.policy.log_prob(z), step.policy.mean
            decisions.append(Decision(step.z, z, step.now, step.after, level, mean, log_prob))
    drawn = generator.decode(z)
    pictures = [drawn[i : i + size] for i in range(0, len(drawn), size)]
    return Rollouts(tuple(places), tuple(prompts), condition, z, pictures, tuple(decisions))
