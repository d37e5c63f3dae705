"""Adapter for `StableDiffusion3Pipeline`: the embedded one and public SD3 and SD3.5 checkpoints alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from rewarddance.core.device import autocast
from rewarddance.generator import flow
from rewarddance.generator.autoencoders import KlAutoencoder
from rewarddance.generator.base import (
    JOINT_ATTENTION,
    PipelineGenerator,
    checked_side,
    load_pipeline,
    num_longer,
    quiet_diffusers,
)


def _expects_t5(pipeline: StableDiffusion3Pipeline) -> bool:
    """Whether the transformer was made for text wider than both CLIP encoders; then zeros stand for a missing T5."""
    clips: tuple[Any, Any] = (pipeline.text_encoder, pipeline.text_encoder_2)
    config: Any = pipeline.transformer.config
    return bool(config.joint_attention_dim > sum(c.config.hidden_size for c in clips))


def _side(config: Any, scale: int, resolution: int | None) -> int:
    if resolution is None:
        return int(config.sample_size * scale)
    patch = scale * config.patch_size
    return checked_side(resolution, patch, patch * config.pos_embed_max_size)


@dataclass(frozen=True)
class Sd3Condition:
    """Text embeddings (B, S, D), pooled (B, P), and those of the empty prompt where guidance is on."""

    embeds: Tensor
    pooled: Tensor
    empty_embeds: Tensor | None = None
    empty_pooled: Tensor | None = None


@final
class Sd3Generator(PipelineGenerator):
    """Stable Diffusion 3. Guidance is classifier-free with the empty prompt and costs a second forward pass.

    Args:
        pipeline: with text_encoder_3 present or None.
        guidance: classifier-free guidance scale; 1 is off and costs one forward pass instead of two.
        max_sequence_length: T5 tokens; must be 0 where there is no T5.
        resolution: side of the pictures in pixels; the checkpoint's own when None.

    Raises:
        ConfigError: the resolution is no whole number of patches, or more than the transformer has positions for.
    """

    kind = StableDiffusion3Pipeline

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        guidance: float = 1.0,
        max_sequence_length: int = 0,
        resolution: int | None = None,
    ) -> None:
        side = _side(pipeline.transformer.config, int(pipeline.vae_scale_factor), resolution)
        super().__init__(pipeline, guidance, side, KlAutoencoder, JOINT_ATTENTION)
        self.max_sequence_length = max_sequence_length
        self._empty: tuple[Tensor, Tensor] | None = None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        guidance: float = 1.0,
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        max_sequence_length: int = 256,
    ) -> Sd3Generator:
        """Load a local folder, see `load_pipeline`."""
        folder = Path(folder)
        no_t5 = not (folder / "text_encoder_3").is_dir()
        none = {"text_encoder_3": None, "tokenizer_3": None} if no_t5 else {}
        pipeline = load_pipeline(StableDiffusion3Pipeline, folder, dtype, **none)
        length = 0 if no_t5 and not _expects_t5(pipeline) else max_sequence_length
        return cls(pipeline, guidance, length, resolution)

    def _embed(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        with quiet_diffusers(), autocast(self.device, self.precision):
            embeds, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), None, None, do_classifier_free_guidance=False,
                max_sequence_length=self.max_sequence_length,
            )  # fmt: skip
        return embeds, pooled

    def num_cut(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the longest text encoder reads."""
        t5: Any = self.pipeline.tokenizer_3
        tokenizer: Any = self.pipeline.tokenizer if t5 is None else t5
        return num_longer(
            tokenizer, prompts, int(tokenizer.model_max_length) if t5 is None else self.max_sequence_length
        )

    def embed(self, prompts: Sequence[str]) -> Sd3Condition:
        """Embed prompts; gradients flow to text encoders that require them."""
        embeds, pooled = self._embed(prompts)
        if self.guidance == 1.0:
            return Sd3Condition(embeds, pooled)
        if self._empty is None:
            with torch.no_grad():
                self._empty = self._embed([""])
        return Sd3Condition(embeds, pooled, *self._empty)

    @property
    def latent_channels(self) -> int:
        return int(self.transformer.config.in_channels)

    def times(self, num_steps: int) -> Tensor:
        """Evenly spaced from 1 to 0, then shifted as the pipeline's scheduler says (3.0 in the public models).

        By default the pipeline spends its last step near 1/1000. To draw as here, give it the even times, which its
        scheduler shifts: `pipeline(..., sigmas=flow.times(num_steps)[:-1].tolist())`.
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
