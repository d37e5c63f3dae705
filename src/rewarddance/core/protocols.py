"""What the two kinds of model promise. Algorithms, searches and evaluations see only these."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rewarddance.core.media import Media


@runtime_checkable
class Generator(Protocol):
    """A text-to-image (later: video) rectified-flow model. Latents z: (B, ...), time 1 = noise, 0 = picture."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def condition(self, prompts: Sequence[str]) -> Any:
        """What the model hears, one entry a prompt."""
        ...

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        """Standard normal latents, (n, ...)."""
        ...

    def times(self, num_steps: int) -> Tensor:
        """The (num_steps + 1) times from 1 to 0 that the model is sampled at (`flow.times` with its shift)."""
        ...

    def velocity(self, z: Tensor, t: float | Tensor, condition: Any) -> Tensor:
        """Velocity noise - x at time t, guidance included, same shape as z."""
        ...

    def decode(self, z: Tensor) -> list[Media]:
        """Latents to pictures, differentiable."""
        ...

    def trainable(self) -> dict[str, nn.Module]:
        """Modules whose parameters with `requires_grad` are trained."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the model is the frozen policy that training started from."""
        ...
