"""The interface of generators: all that algorithms, searches and evaluations use. Judges: `types.RewardModel`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rewarddance.core.config import Computed
from rewarddance.core.media import Media
from rewarddance.core.task import Drawn, Request

Policy = Literal["trained", "reference", "old"]
"""The weights that a generator computes with: the trained ones, the frozen start, or a slow copy of the trained
ones."""


@runtime_checkable
class Generator(Protocol):
    """A rectified-flow model. Latents z are (B, ...); time runs from 1 (noise) to 0 (picture).

    Attributes:
        guidance: classifier-free guidance scale; 1 is off.
        precision: of `condition` and `velocity`. Latents are fp32, and `decode` computes in fp32.
    """

    guidance: float
    precision: Computed

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        ...

    @property
    def passes(self) -> int:
        """Forward passes for one velocity: two where guidance needs a pass of its own."""
        ...

    def condition(self, prompts: Sequence[Request]) -> Any:
        """The embedded prompts, one entry a prompt; image-to-video embeds the prompts' pictures too.

        Raises:
            InputError: a prompt has a picture and the generator draws from text alone, or the other way round.
        """
        ...

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        """Standard normal latents, (n, ...)."""
        ...

    def times(self, num_steps: int) -> Tensor:
        """The (num_steps + 1) times from 1 to 0 at which the model is sampled (`flow.times` with its shift)."""
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

    @property
    def drawn(self) -> Drawn:
        """What it draws: size, frames, and whether it begins with a picture."""
        ...

    def num_parameters(self) -> int:
        """Parameters of all parts."""
        ...

    def num_cut(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the text encoders read."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pictures (B, 3, H, W) or clips (B, F, 3, H, W) in [0, 1], as `decode` takes them."""
        ...

    def sample(self, prompts: Sequence[Request], *, num_steps: int = 20, seed: int = 0, batch: int = 16) -> list[Media]:
        """One picture for each prompt."""
        ...

    def add_lora(self, rank: int, alpha: float) -> None:
        """Add a LoRA adapter; it becomes the only trainable part."""
        ...

    def policy(self, policy: Policy) -> AbstractContextManager[None]:
        """A context in which the model computes as this policy; contexts may be nested.

        No gradient reaches the weights of `reference` and `old`, and every `requires_grad` stays as it is. With
        `checkpoint_gradients` the backward pass computes the activations again, so a gradient to the latents must be
        taken inside the context.

        Raises:
            ConfigError: there is no such policy; `add_lora` and `add_old` make them.
        """
        ...

    def add_old(self) -> None:
        """Add the policy `old`: a frozen copy of the trained adapter as it is now. Draws no random numbers.

        Raises:
            ConfigError: there is no adapter to copy, or an old policy already.
        """
        ...

    def update_old(self, decay: float) -> None:
        """Move the old policy: old = decay * old + (1 - decay) * trained, matrix by matrix. Decay 0 copies exactly.

        Raises:
            ValueError: a decay outside [0, 1].
        """
        ...

    def old_state(self) -> dict[str, Tensor]:
        """Copies of the old policy's matrices by name, for a checkpoint."""
        ...

    def load_old_state(self, state: dict[str, Tensor]) -> None:
        """Load what `old_state` returned.

        Raises:
            ConfigError: there is no old policy, or the state was made for another one.
        """
        ...

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass instead of keeping them, also in the decoder."""
        ...

    def decode_in_chunks(self, num: int) -> None:
        """Decode with gradient `num` latent frames at a time, which needs less memory and more time.

        Raises:
            ConfigError: the generator draws pictures.
        """
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
