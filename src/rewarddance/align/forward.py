"""The shared part of the forward-process algorithms: noise finished pictures again and compare velocities there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewarddance.core.protocols import Generator
from rewarddance.generator import flow


@dataclass(frozen=True)
class Noised:
    """N pictures, noised.

    Attributes:
        x0, noise, z: clean latents, noise, and the state between them, (N, ...); t: times (N,).
        condition: the embedded prompts of the N rows.
    """

    x0: Tensor
    noise: Tensor
    z: Tensor
    t: Tensor
    condition: Any

    @property
    def target(self) -> Tensor:
        """The velocity of the straight path, noise - x0."""
        return self.noise - self.x0

    @property
    def times(self) -> Tensor:
        """The times in the shape that broadcasts over z, (N, 1, ...)."""
        return self.t.view(-1, *([1] * (self.z.ndim - 1)))


def noised(x0: Tensor, noise: Tensor, t: Tensor, condition: Any) -> Noised:
    """Noise clean latents (N, ...) to times (N,)."""
    return Noised(x0, noise, flow.add_noise(x0, noise, t), t, condition)


def stratified_times(num: int, between: tuple[float, float], rng: torch.Generator) -> Tensor:
    """Random times in a range: one in each of `num` equal parts, in random order."""
    parts = (torch.randperm(num, generator=rng) + torch.rand(num, generator=rng)) / num
    low, high = between
    return low + (high - low) * parts


def mean_square(x: Tensor) -> Tensor:
    """Mean of squares over all axes but the first, (N,)."""
    return x.square().flatten(1).mean(1)


@torch.no_grad()
def frozen_velocity(generator: Generator, batch: Noised) -> Tensor:
    """The frozen policy's velocity, (N, ...)."""
    with generator.reference():
        return generator.velocity(batch.z, batch.t, batch.condition)
