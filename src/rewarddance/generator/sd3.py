"""Adapter for `StableDiffusion3Pipeline`: the embedded one and public SD3 and SD3.5 checkpoints alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn

from rewarddance.core.config import Computed
from rewarddance.core.device import SMALL_MODEL, autocast, num_parameters
from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.protocols import Policy
from rewarddance.generator import flow
from rewarddance.generator.lora import Lora
from rewarddance.generator.trace import draw
from rewarddance.vlm.quiet import no_loading_bar

LORA_TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
                "attn.add_v_proj", "attn.to_add_out")  # fmt: skip


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """No progress bar for local folders that load in a second, no warning a call about prompts that are cut."""
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


def _expects_t5(pipeline: StableDiffusion3Pipeline) -> bool:
    """Whether the transformer was made for text wider than both CLIP encoders; then zeros stand for a missing T5."""
    clips: tuple[Any, Any] = (pipeline.text_encoder, pipeline.text_encoder_2)
    config: Any = pipeline.transformer.config
    return bool(config.joint_attention_dim > sum(c.config.hidden_size for c in clips))


def _side(config: Any, scale: int, resolution: int | None) -> int:
    """Side of the pictures in pixels.

    Raises:
        ConfigError: the transformer cannot draw pictures of this side.
    """
    patch = scale * config.patch_size
    most = patch * config.pos_embed_max_size
    if resolution is None:
        return int(config.sample_size * scale)
    if resolution < patch or resolution % patch or resolution > most:
        raise ConfigError(f"resolution {resolution}: this generator draws multiples of {patch} up to {most} pixels")
    return resolution


@dataclass(frozen=True)
class Sd3Condition:
    """Text embeddings (B, S, D), pooled (B, P), and those of the empty prompt where guidance is on."""

    embeds: Tensor
    pooled: Tensor
    empty_embeds: Tensor | None = None
    empty_pooled: Tensor | None = None


class Sd3Generator:
    """Condition, velocity and decoder from a pipeline's parts (the pipeline's own call runs without gradients).

    Args:
        pipeline: with text_encoder_3 present or None.
        guidance: classifier-free guidance scale; 1 is off and costs one forward pass instead of two.
        max_sequence_length: T5 tokens; must be 0 where there is no T5.
        resolution: side of the pictures in pixels; the checkpoint's own when None.

    Attributes:
        precision: what text encoders and transformer compute in; set by whoever loads the generator. The autoencoder
            always computes in fp32, because reward feedback sends its gradient through the decoder.

    Raises:
        ConfigError: the resolution is no whole number of patches, or more than the transformer has positions for.
    """

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        guidance: float = 1.0,
        max_sequence_length: int = 0,
        resolution: int | None = None,
    ) -> None:
        self.pipeline, self.guidance, self.max_sequence_length = pipeline, guidance, max_sequence_length
        self.precision: Computed = "fp32"
        self.transformer: Any = pipeline.transformer
        self.vae: Any = pipeline.vae.float()
        self.side = _side(self.transformer.config, int(pipeline.vae_scale_factor), resolution)
        self._empty: tuple[Tensor, Tensor] | None = None
        self._lora = Lora(self.transformer, LORA_TARGETS, StableDiffusion3Pipeline.save_lora_weights)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        guidance: float = 1.0,
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        max_sequence_length: int = 256,
    ) -> Sd3Generator:
        """Load a local folder in diffusers layout; all parts in evaluation mode and frozen.

        Raises:
            ConfigError: a part is missing or cannot be read. Weights must be safetensors; pickled ones are not read.
        """
        folder = Path(folder)
        no_t5 = not (folder / "text_encoder_3").is_dir()
        none = {"text_encoder_3": None, "tokenizer_3": None} if no_t5 else {}
        try:
            with _quiet_diffusers(), no_loading_bar(_is_small(folder)):
                pipeline = StableDiffusion3Pipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True, **none)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:300]})") from None
        parts = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
        for part in (pipeline.transformer, pipeline.vae, *parts):
            if part is not None:
                part.eval().requires_grad_(False)
        for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2, pipeline.tokenizer_3):
            if tokenizer is not None:  # the pipeline itself cuts what is too long; `num_cut` counts it
                tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        length = 0 if no_t5 and not _expects_t5(pipeline) else max_sequence_length
        return cls(pipeline, guidance, length, resolution)

    @property
    def device(self) -> torch.device:
        return torch.device(next(self.transformer.parameters()).device)

    def num_parameters(self) -> int:
        """Parameters of all parts."""
        p = self.pipeline
        return num_parameters(p.transformer, p.vae, p.text_encoder, p.text_encoder_2, p.text_encoder_3)

    def _embed(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        with _quiet_diffusers(), autocast(self.device, self.precision):
            embeds, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), None, None, do_classifier_free_guidance=False,
                max_sequence_length=self.max_sequence_length,
            )  # fmt: skip
        return embeds, pooled

    def num_cut(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the longest text encoder reads."""
        t5: Any = self.pipeline.tokenizer_3
        tokenizer: Any = self.pipeline.tokenizer if t5 is None else t5
        most = int(tokenizer.model_max_length) if t5 is None else self.max_sequence_length
        ids = tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        return sum(len(row) > most for row in ids)

    def condition(self, prompts: Sequence[str]) -> Sd3Condition:
        """Embed prompts; gradients flow to text encoders that require them."""
        embeds, pooled = self._embed(prompts)
        if self.guidance == 1.0:
            return Sd3Condition(embeds, pooled)
        if self._empty is None:
            with torch.no_grad():
                self._empty = self._embed([""])
        return Sd3Condition(embeds, pooled, *self._empty)

    def latent_shape(self) -> tuple[int, int, int]:
        side = self.side // int(self.pipeline.vae_scale_factor)
        return self.transformer.config.in_channels, side, side

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.randn(n, *self.latent_shape(), generator=rng, device=rng.device).to(self.device)

    def times(self, num_steps: int) -> Tensor:
        """Evenly spaced from 1 to 0, then shifted as the pipeline's scheduler says (3.0 in the public models).

        The pipeline's own default spends its last step near 1/1000. It draws as here when it gets the even times,
        which its scheduler shifts: `pipeline(..., sigmas=flow.times(num_steps)[:-1].tolist())`.
        """
        return flow.times(num_steps, float(self.pipeline.scheduler.config.shift))

    def velocity(self, z: Tensor, t: float | Tensor, condition: Sd3Condition) -> Tensor:
        time = torch.as_tensor(t, dtype=torch.float32, device=z.device).expand(len(z)) * 1000
        z = z.to(self.transformer.dtype)
        if condition.empty_embeds is None or condition.empty_pooled is None:
            return self._forward(z, time, condition.embeds, condition.pooled)
        n = len(z)
        embeds = torch.cat([condition.empty_embeds.expand(n, -1, -1), condition.embeds])
        pooled = torch.cat([condition.empty_pooled.expand(n, -1), condition.pooled])
        empty, full = self._forward(torch.cat([z, z]), time.repeat(2), embeds, pooled).chunk(2)
        return empty + self.guidance * (full - empty)

    def _forward(self, z: Tensor, time: Tensor, embeds: Tensor, pooled: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            out = self.transformer(
                hidden_states=z, timestep=time, encoder_hidden_states=embeds, pooled_projections=pooled,
                return_dict=False,
            )  # fmt: skip
        return flow.at_least_fp32(torch.as_tensor(out[0]))

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] to normalised latents."""
        z = self.vae.encode(pixels * 2 - 1).latent_dist.mode()
        return torch.as_tensor((z - self.vae.config.shift_factor) * self.vae.config.scaling_factor)

    def decode_tensor(self, z: Tensor) -> Tensor:
        """Normalised latents to pixels (B, 3, H, W) in [0, 1]. Pixels that are clamped have no gradient."""
        with autocast(self.device, "fp32"):
            z = z.to(self.vae.dtype) / self.vae.config.scaling_factor + self.vae.config.shift_factor
            return torch.as_tensor((self.vae.decode(z).sample / 2 + 0.5).clamp(0, 1))

    def decode(self, z: Tensor) -> list[Media]:
        return [Media(x[None], origin="generator") for x in self.decode_tensor(z)]

    def sample(self, prompts: Sequence[str], *, num_steps: int = 20, seed: int = 0, batch: int = 16) -> list[Media]:
        """One picture a prompt; equal seeds and prompts give equal pictures, whatever the batch."""
        noise = self.noise(len(prompts), torch.Generator().manual_seed(seed))
        return list(draw(self, prompts, noise, num_steps, batch=batch))

    def add_lora(self, rank: int, alpha: float) -> None:
        """Add a LoRA adapter as the only trainable part; the frozen policy is the model without it."""
        self._lora.add(rank, alpha)

    def checkpoint_gradients(self) -> None:
        self.transformer.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()

    def to(self, device: torch.device) -> None:
        self.pipeline.to(device)

    def save_adapter(self, folder: Path) -> Path:
        """Write the trained adapter for `load_adapter`, and beside it for `load_lora_weights` of diffusers."""
        return self._lora.save(folder)

    def load_adapter(self, folder: Path, *, trainable: bool = False) -> None:
        """Load a saved adapter, frozen unless `trainable`; the model without it stays reachable as `reference()`."""
        self._lora.load(folder, trainable=trainable)

    def trainable(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}

    def reference(self) -> AbstractContextManager[None]:
        return self._lora.policy("reference")

    def policy(self, policy: Policy) -> AbstractContextManager[None]:
        return self._lora.policy(policy)

    def add_old(self) -> None:
        self._lora.add_old()

    def update_old(self, decay: float) -> None:
        self._lora.update_old(decay)

    def old_state(self) -> dict[str, Tensor]:
        return self._lora.old_state()

    def load_old_state(self, state: dict[str, Tensor]) -> None:
        self._lora.load_old_state(state)
