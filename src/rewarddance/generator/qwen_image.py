"""Adapter for `QwenImagePipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from rewarddance.core.device import autocast
from rewarddance.core.errors import ConfigError
from rewarddance.generator import flow
from rewarddance.generator.autoencoders import QwenAutoencoder
from rewarddance.generator.base import (
    JOINT_ATTENTION,
    PipelineGenerator,
    checked_side,
    num_longer,
    pack,
    quiet_diffusers,
    times_for_tokens,
    unpack,
)

EMPTY = " "
"""The negative prompt of Qwen-Image's own examples; it has no content."""


@dataclass(frozen=True)
class Text:
    """Embeddings (B, S, D), and a mask (B, S) of those that are not padding; None if nothing is padding."""

    embeds: Tensor
    mask: Tensor | None

    def expand(self, n: int) -> Text:
        """A single text for n pictures."""
        return Text(self.embeds.expand(n, -1, -1), None if self.mask is None else self.mask.expand(n, -1))


@dataclass(frozen=True)
class QwenImageCondition:
    """The prompts, and the prompt without content if guidance is on."""

    text: Text
    empty: Text | None = None


@final
class QwenImageGenerator(PipelineGenerator):
    """Qwen-Image. A guided velocity costs a second forward pass. Each token's guided velocity is scaled to the length
    of its velocity under the prompt alone.

    Args:
        guidance: classifier-free guidance scale (`true_cfg_scale` of the pipeline, 4 in its own examples); 1 is off.
        max_sequence_length: tokens that the text encoder reads, with five of the chat around a prompt; at most 1024.
        resolution: side of the pictures in pixels; 1024 in the public model when None.

    Raises:
        ConfigError: the resolution is no whole number of patches, or the checkpoint is distilled for guidance.
    """

    kind = QwenImagePipeline

    def __init__(
        self,
        pipeline: QwenImagePipeline,
        guidance: float = 1.0,
        max_sequence_length: int = 256,
        resolution: int | None = None,
    ) -> None:
        scale = int(pipeline.vae_scale_factor)
        side = checked_side(resolution or int(pipeline.default_sample_size) * scale, 2 * scale)
        super().__init__(pipeline, guidance, side, QwenAutoencoder, JOINT_ATTENTION)
        self.max_sequence_length = min(max_sequence_length, int(pipeline.tokenizer_max_length))
        self._empty: Text | None = None
        if self.transformer.config.guidance_embeds:
            raise ConfigError("this Qwen-Image has guidance_embeds, which its transformer class does not compute")

    def num_cut(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the text encoder reads."""
        texts = [self.pipeline.prompt_template_encode.format(p) for p in prompts]
        max_tokens = self.max_sequence_length + int(self.pipeline.prompt_template_encode_start_idx)
        return num_longer(self.pipeline.tokenizer, texts, max_tokens)

    def _embed(self, prompts: Sequence[str]) -> Text:
        with quiet_diffusers(), autocast(self.device, self.precision):
            embeds, mask = self.pipeline.encode_prompt(list(prompts), max_sequence_length=self.max_sequence_length)
        return Text(embeds, mask)

    def embed(self, prompts: Sequence[str]) -> QwenImageCondition:
        """Embed prompts; gradients flow to a text encoder that requires them."""
        text = self._embed(prompts)
        if self.guidance == 1.0:
            return QwenImageCondition(text)
        if self._empty is None:
            with torch.no_grad():
                self._empty = self._embed([EMPTY])
        return QwenImageCondition(text, self._empty)

    @property
    def latent_channels(self) -> int:
        return int(self.transformer.config.in_channels) // 4

    def times(self, num_steps: int) -> Tensor:
        """The pipeline's own times: evenly spaced, shifted by the number of tokens, stretched to end at
        `shift_terminal`."""
        return times_for_tokens(self.pipeline.scheduler, num_steps, self.latent_side**2 // 4)

    def velocity(self, z: Tensor, t: float | Tensor, condition: QwenImageCondition) -> Tensor:
        full = self._forward(z, t, condition.text)
        if condition.empty is None:
            return unpack(full)
        empty = self._forward(z, t, condition.empty.expand(len(z)))
        mixed = empty + self.guidance * (full - empty)
        return unpack(mixed * (full.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True)))

    def _forward(self, z: Tensor, t: float | Tensor, text: Text) -> Tensor:
        """Velocities of the tokens, (B, h w, 4 C)."""
        n, _, height, width = z.shape
        time = torch.as_tensor(t, dtype=torch.float32, device=z.device).expand(n)
        with autocast(self.device, self.precision):
            out = self.transformer(
                hidden_states=pack(z.to(self.transformer.dtype)), timestep=time, encoder_hidden_states=text.embeds,
                encoder_hidden_states_mask=text.mask, img_shapes=[[(1, height // 2, width // 2)]] * n,
                return_dict=False,
            )  # fmt: skip
        return flow.at_least_fp32(torch.as_tensor(out[0]))
