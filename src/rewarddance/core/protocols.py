"""What the two kinds of model promise. Algorithms, searches and evaluations see only these."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
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


@runtime_checkable
class Tunable(Generator, Protocol):
    """A generator that can be aligned: by an adapter beside frozen weights, which stay reachable as `reference()`.

    Attributes:
        guidance: classifier-free guidance scale; 1 is off.
    """

    guidance: float

    @property
    def side(self) -> int:
        """Side of its pictures in pixels."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] to latents, as `decode` takes them."""
        ...

    def sample(self, prompts: Sequence[str], *, num_steps: int = 20, seed: int = 0, batch: int = 16) -> list[Media]:
        """One picture a prompt."""
        ...

    def add_lora(self, rank: int, alpha: float) -> None:
        """Make a LoRA adapter the only trainable part."""
        ...

    def checkpoint_gradients(self) -> None:
        """Compute activations again in the backward pass instead of keeping them, decoder included."""
        ...

    def save_adapter(self, folder: Path) -> Path:
        """Write the adapter with what `load_adapter` needs."""
        ...

    def load_adapter(self, folder: Path) -> None:
        """Put a saved adapter on, frozen."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        ...
