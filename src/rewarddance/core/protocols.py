"""What generators promise. Algorithms, searches and evaluations use only this. (For judges: `types.RewardModel`.)"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rewarddance.core.config import Computed
from rewarddance.core.media import Media


@runtime_checkable
class Generator(Protocol):
    """A rectified-flow model. Latents z are (B, ...); time runs from 1 (noise) to 0 (picture).

    Attributes:
        guidance: classifier-free guidance scale; 1 is off.
        precision: what `condition` and `velocity` compute in. Latents are fp32, and `decode` computes in fp32.
    """

    guidance: float
    precision: Computed

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        ...

    def condition(self, prompts: Sequence[str]) -> Any:
        """The embedded prompts, one entry a prompt."""
        ...

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        """Standard normal latents, (n, ...)."""
        ...

    def times(self, num_steps: int) -> Tensor:
        """The (num_steps + 1) times from 1 to 0 that the model is sampled at (`flow.times` with its shift)."""
        ...

    def velocity(self, z: Tensor, t: float | Tensor, condition: Any) -> Tensor:
        """Velocity noise - x at time t, guidance included; fp32, same shape as z."""
        ...

    def decode(self, z: Tensor) -> list[Media]:
        """Pictures of latents; differentiable."""
        ...

    def trainable(self) -> dict[str, nn.Module]:
        """Modules whose parameters with `requires_grad` are trained."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """A context in which the model is the frozen policy that training started from."""
        ...


@runtime_checkable
class Tunable(Generator, Protocol):
    """A generator that can be aligned: a LoRA adapter beside frozen weights, which stay reachable as `reference()`."""

    @property
    def side(self) -> int:
        """Side of its pictures in pixels."""
        ...

    def num_parameters(self) -> int:
        """Parameters of all parts."""
        ...

    def num_cut(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the text encoders read."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pictures (B, 3, H, W) in [0, 1], as `decode` takes them."""
        ...

    def sample(self, prompts: Sequence[str], *, num_steps: int = 20, seed: int = 0, batch: int = 16) -> list[Media]:
        """One picture a prompt."""
        ...

    def add_lora(self, rank: int, alpha: float) -> None:
        """Add a LoRA adapter; it becomes the only trainable part."""
        ...

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass instead of keeping them, also in the decoder."""
        ...

    def save_adapter(self, folder: Path) -> Path:
        """Write the adapter for `load_adapter`."""
        ...

    def load_adapter(self, folder: Path, *, trainable: bool = False) -> None:
        """Load a saved adapter, frozen unless `trainable`."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        ...
