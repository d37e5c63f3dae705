"""The shared part of the adapters of all families. A family is one file with a final class."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rewarddance.core.config import Computed
from rewarddance.core.device import SMALL_MODEL, autocast, num_parameters
from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media
from rewarddance.core.protocols import Policy
from rewarddance.core.task import Drawn, Request, picture_of, text_of, texts_of
from rewarddance.generator.autoencoders import Autoencoder
from rewarddance.generator.lora import Lora
from rewarddance.generator.trace import draw
from rewarddance.vlm.quiet import no_loading_bar

JOINT_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
                   "attn.add_v_proj", "attn.to_add_out")  # fmt: skip
"""The layers that get a LoRA adapter if text and picture have projections of their own."""
EXPERTS = ("transformer", "transformer_2")
"""Names of a pipeline's transformers. Only Wan 2.2 has two; the second one is used at times below `boundary_ratio`."""


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Hide diffusers' progress bar for local folders, and its warning at every call about prompts that are cut."""
    bar, level = diffusers_logging.is_progress_bar_enabled(), diffusers_logging.get_verbosity()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        if bar:
            diffusers_logging.enable_progress_bar()


def _is_small(folder: Path) -> bool:
    return sum(p.stat().st_size for p in folder.glob("*/*.safetensors")) <= 4 * SMALL_MODEL


def load_pipeline(kind: Any, folder: Path, dtype: torch.dtype, **parts: None) -> Any:
    """Load a local folder in diffusers layout; all parts in evaluation mode and frozen.

    Args:
        kind: the pipeline's class.
        parts: parts that the folder lacks, as None.

    Raises:
        ConfigError: a part is missing or cannot be read. Weights must be safetensors; pickled ones are not read.
    """
    try:
        with quiet_diffusers(), no_loading_bar(_is_small(folder)):
            pipeline = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, **parts)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:300]})") from None
    for part in _modules(pipeline):
        part.eval().requires_grad_(False)
    for part in pipeline.components.values():
        if isinstance(part, PreTrainedTokenizerBase):  # the pipeline cuts long prompts; `num_cut` counts them
            part.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return pipeline


def _modules(pipeline: Any) -> list[nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, nn.Module)]


def checked_side(resolution: int, patch: int, max_side: int | None = None) -> int:
    """The side of the pictures in pixels.

    Args:
        patch: pixels of one token's side.
        max_side: the largest side that the transformer has positions for.

    Raises:
        ConfigError: the transformer cannot draw pictures of this side.
    """
    if resolution < patch or resolution % patch or (max_side is not None and resolution > max_side):
        limit = "" if max_side is None else f" up to {max_side}"
        raise ConfigError(f"resolution {resolution}: this generator draws multiples of {patch}{limit} pixels")
    return resolution


def num_longer(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> int:
    """How many texts have more than `max_tokens` tokens."""
    ids = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    return sum(len(row) > max_tokens for row in ids)


def times_for_tokens(scheduler: Any, num_steps: int, num_tokens: int) -> Tensor:
    """The times at which the pipelines of FLUX.1, Qwen-Image and Z-Image sample a picture of `num_tokens` tokens.

    Evenly spaced, then shifted by the scheduler. With dynamic shifting the shift is exp(mu), and mu is linear in the
    number of tokens.

    Raises:
        ConfigError: a scheduler whose steps are not Euler's steps of the flow.
    """
    config = scheduler.config
    kind = type(scheduler).__name__
    if kind != "FlowMatchEulerDiscreteScheduler" or config.invert_sigmas or config.stochastic_sampling:
        raise ConfigError(f"scheduler {kind}: only FlowMatchEulerDiscreteScheduler without noise is supported")
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    scheduler_copy = type(scheduler).from_config(config)  # the pipeline's own scheduler stays as it is
    even = torch.linspace(1, 1 / num_steps, num_steps, dtype=torch.float64).numpy()
    scheduler_copy.set_timesteps(sigmas=even, mu=config.base_shift + slope * (num_tokens - config.base_image_seq_len))
    return torch.as_tensor(scheduler_copy.sigmas)


def pack(z: Tensor) -> Tensor:
    """Latents (B, C, 2h, 2w) to tokens of two by two, (B, h w, 4 C)."""
    b, c, height, width = z.shape
    z = z.reshape(b, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return z.reshape(b, height * width // 4, 4 * c)


def unpack(tokens: Tensor) -> Tensor:
    """The inverse of `pack` for square pictures."""
    b, n, c = tokens.shape
    side = math.isqrt(n)
    return tokens.reshape(b, side, side, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, 2 * side, 2 * side)


class PipelineGenerator(ABC):
    """A `Tunable` from a pipeline's parts (the pipeline's own call runs without gradients).

    Args:
        pipeline: with a `transformer` and a `vae`.
        guidance: classifier-free guidance scale; 1 is off.
        side: of its pictures in pixels.
        autoencoder: around the pipeline's `vae`.
        lora_targets: endings of the names of the layers that get a LoRA adapter.

    Attributes:
        precision: precision in which text encoders and transformer compute; `jobs.load.load_generator` sets it. The
            autoencoder always computes in fp32, because reward feedback sends its gradient through the decoder.
    """

    kind: ClassVar[Any]
    """The pipeline's class."""
    guidance_is_embedded: ClassVar[bool] = False
    """Whether the model is told the guidance scale and needs no second pass for it."""

    def __init__(
        self, pipeline: Any, guidance: float, side: int, autoencoder: type[Autoencoder], lora_targets: Sequence[str]
    ) -> None:
        self.pipeline, self.guidance, self.side = pipeline, guidance, side
        self.precision: Computed = "fp32"
        self.transformer: Any = pipeline.transformer
        self.vae: Any = pipeline.vae.float()
        self.autoencoder: Any = autoencoder(self.vae)  # type: ignore[call-arg]
        self.experts = {n: m for n in EXPERTS if (m := getattr(pipeline, n, None)) is not None}
        self.lora = Lora(list(self.experts.values()), lora_targets, type(pipeline).save_lora_weights)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        guidance: float = 1.0,
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        max_sequence_length: int = 256,
    ) -> Self:
        """Load a local folder in diffusers layout; see `load_pipeline` for errors."""
        pipeline = load_pipeline(cls.kind, Path(folder), dtype)
        return cls(pipeline, guidance, max_sequence_length, resolution)  # type: ignore[call-arg, arg-type]

    @abstractmethod
    def num_cut(self, prompts: Sequence[str]) -> int: ...

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Any:
        """The embedded texts, one entry a prompt."""

    def condition(self, prompts: Sequence[Request]) -> Any:
        for prompt in prompts:
            if picture_of(prompt) is not None:
                raise InputError(
                    f"prompt {text_of(prompt)[:60]!r} has a picture to begin with, but this generator draws from text "
                    "alone"
                )
        return self.embed(texts_of(prompts))

    @property
    def drawn(self) -> Drawn:
        return Drawn(self.side)

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @abstractmethod
    def times(self, num_steps: int) -> Tensor: ...

    @abstractmethod
    def velocity(self, z: Tensor, t: float | Tensor, condition: Any) -> Tensor: ...

    @property
    def device(self) -> torch.device:
        return torch.device(next(self.transformer.parameters()).device)

    def num_parameters(self) -> int:
        """Parameters of all parts."""
        return num_parameters(*_modules(self.pipeline))

    @property
    def passes(self) -> int:
        return 1 if self.guidance == 1.0 or self.guidance_is_embedded else 2

    @property
    def latent_side(self) -> int:
        """Height and width of the latents."""
        return self.side // int(self.pipeline.vae_scale_factor)

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        shape = (n, self.latent_channels, self.latent_side, self.latent_side)
        return torch.randn(shape, generator=rng, device=rng.device).to(self.device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] to normalised latents."""
        return torch.as_tensor(self.autoencoder.encode(pixels * 2 - 1))

    def decode_tensor(self, z: Tensor) -> Tensor:
        """Normalised latents to pixels (B, 3, H, W) in [0, 1]. Pixels that are clamped have no gradient."""
        with autocast(self.device, "fp32"):
            return torch.as_tensor((self.autoencoder.decode(z) / 2 + 0.5).clamp(0, 1))

    def decode(self, z: Tensor) -> list[Media]:
        return [Media(x[None], origin="generator") for x in self.decode_tensor(z)]

    def sample(self, prompts: Sequence[Request], *, num_steps: int = 20, seed: int = 0, batch: int = 16) -> list[Media]:
        """One picture for each prompt; equal seeds and prompts give equal pictures with any batch."""
        noise = self.noise(len(prompts), torch.Generator().manual_seed(seed))
        return list(draw(self, prompts, noise, num_steps, batch=batch))

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass, also in the decoder where its class can (Qwen-Image's cannot)."""
        for expert in self.experts.values():
            expert.enable_gradient_checkpointing()
        if self.vae._supports_gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()

    def decode_in_chunks(self, num: int) -> None:
        raise ConfigError("decode_chunk: cuts clips into parts, and this generator draws pictures; leave it at 0")

    def to(self, device: torch.device) -> None:
        self.pipeline.to(device)

    def trainable(self) -> dict[str, nn.Module]:
        return dict(self.experts)

    def add_lora(self, rank: int, alpha: float) -> None:
        """Add a LoRA adapter as the only trainable part; the frozen policy is the model without it."""
        self.lora.add(rank, alpha)

    def save_adapter(self, folder: Path) -> Path:
        """Write the trained adapter for `load_adapter`, and beside it for `load_lora_weights` of diffusers."""
        return self.lora.save(folder)

    def load_adapter(self, folder: Path, *, trainable: bool = False) -> None:
        """Load a saved adapter, frozen unless `trainable`; the model without it stays reachable as `reference()`."""
        self.lora.load(folder, trainable=trainable)

    def reference(self) -> AbstractContextManager[None]:
        return self.lora.policy("reference")

    def policy(self, policy: Policy) -> AbstractContextManager[None]:
        return self.lora.policy(policy)

    def add_old(self) -> None:
        self.lora.add_old()

    def update_old(self, decay: float) -> None:
        self.lora.update_old(decay)

    def old_state(self) -> dict[str, Tensor]:
        return self.lora.old_state()

    def load_old_state(self, state: dict[str, Tensor]) -> None:
        self.lora.load_old_state(state)
