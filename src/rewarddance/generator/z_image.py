"""Adapter for `ZImagePipeline`: Z-Image and Z-Image-Turbo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from diffusers import ZImagePipeline
from torch import Tensor

from rewarddance.core.device import autocast
from rewarddance.generator import flow
from rewarddance.generator.autoencoders import KlAutoencoder
from rewarddance.generator.base import (
    PipelineGenerator,
    checked_side,
    num_longer,
    quiet_diffusers,
    times_for_tokens,
)

ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
SIDE = 1024


@dataclass(frozen=True)
class ZImageCondition:
    """Embeddings of every prompt, (S, D) each, and of the empty prompt where guidance is on."""

    embeds: tuple[Tensor, ...]
    empty: Tensor | None = None


@final
class ZImageGenerator(PipelineGenerator):
    """Z-Image. Its transformer counts time from 0 (noise) to 1 (picture) and predicts x - noise.

    Args:
        guidance: classifier-free guidance scale, empty + guidance (full - empty), at a second forward pass; 1 is off.
            The pipeline's `guidance_scale` is smaller by one: its 4 is 5 here, its 0 (Turbo) is 1 here.
        max_sequence_length: tokens that the text encoder reads, with those of the chat around a prompt.
        resolution: side of the pictures in pixels; 1024 when None.

    Raises:
        ConfigError: the resolution is no whole number of patches, or more than the transformer has positions for.
    """

    kind = ZImagePipeline

    def __init__(
        self,
        pipeline: ZImagePipeline,
        guidance: float = 1.0,
        max_sequence_length: int = 256,
        resolution: int | None = None,
    ) -> None:
        patch = 2 * int(pipeline.vae_scale_factor)
        side = checked_side(resolution or SIDE, patch, patch * min(pipeline.transformer.config.axes_lens[1:]))
        super().__init__(pipeline, guidance, side, KlAutoencoder, ATTENTION)
        self.max_sequence_length = max_sequence_length
        self._empty: Tensor | None = None

    def num_cut(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the text encoder reads."""
        tokenizer = self.pipeline.tokenizer
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            for p in prompts
        ]
        return num_longer(tokenizer, texts, self.max_sequence_length)

    def _embed(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        with quiet_diffusers(), autocast(self.device, self.precision):
            embeds, _ = self.pipeline.encode_prompt(
                list(prompts), do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
            )
        return tuple(embeds)

    def embed(self, prompts: Sequence[str]) -> ZImageCondition:
        """Embed prompts; gradients flow to a text encoder that requires them."""
        embeds = self._embed(prompts)
        if self.guidance == 1.0:
            return ZImageCondition(embeds)
        if self._empty is None:
            with torch.no_grad():
                (self._empty,) = self._embed([""])
        return ZImageCondition(embeds, self._empty)

    @property
    def latent_channels(self) -> int:
        return int(self.transformer.config.in_channels)

    def times(self, num_steps: int) -> Tensor:
        """The pipeline's own times: evenly spaced, then shifted as the scheduler says."""
        return times_for_tokens(self.pipeline.scheduler, num_steps, self.latent_side**2 // 4)

    def velocity(self, z: Tensor, t: float | Tensor, condition: ZImageCondition) -> Tensor:
        n = len(z)
        time = torch.as_tensor(t, dtype=torch.float32, device=z.device).expand(n)
        if condition.empty is None:
            return self._forward(z, time, condition.embeds)
        embeds = (*[condition.empty] * n, *condition.embeds)
        empty, full = self._forward(torch.cat([z, z]), time.repeat(2), embeds).chunk(2)
        return empty + self.guidance * (full - empty)

    def _forward(self, z: Tensor, time: Tensor, embeds: Sequence[Tensor]) -> Tensor:
        latents = list(z.to(self.transformer.dtype)[:, :, None].unbind())  # each picture is a clip of one frame
        with autocast(self.device, self.precision):
            out = self.transformer(latents, 1 - time, list(embeds), return_dict=False)[0]
        return -flow.at_least_fp32(torch.stack(list(out)))[:, :, 0]
