"""Adapter for `FluxPipeline`: FLUX.1 [dev] and [schnell]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from diffusers import FluxPipeline
from torch import Tensor

from rewarddance.core.device import autocast
from rewarddance.core.errors import ConfigError
from rewarddance.generator import flow
from rewarddance.generator.autoencoders import KlAutoencoder
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


@dataclass(frozen=True)
class FluxCondition:
    """T5's embeddings (B, S, D) and CLIP's pooled ones (B, P)."""

    embeds: Tensor
    pooled: Tensor


@final
class FluxGenerator(PipelineGenerator):
    """FLUX.1. Guidance is distilled into the model: the scale is an embedding, and a step is one forward pass.

    Args:
        guidance: the scale that [dev] is told (3.5 in its own examples); at 1 it draws as without guidance. [schnell]
            has no such embedding and takes 1 only.
        max_sequence_length: tokens of a prompt that T5 reads.
        resolution: side of the pictures in pixels; 1024 in the public models when None.

    Raises:
        ConfigError: the resolution is no whole number of patches, or guidance for a model without it.
    """

    kind = FluxPipeline
    guidance_is_embedded = True

    def __init__(
        self,
        pipeline: FluxPipeline,
        guidance: float = 1.0,
        max_sequence_length: int = 256,
        resolution: int | None = None,
    ) -> None:
        scale = int(pipeline.vae_scale_factor)
        side = checked_side(resolution or int(pipeline.default_sample_size) * scale, 2 * scale)
        super().__init__(pipeline, guidance, side, KlAutoencoder, JOINT_ATTENTION)
        self.max_sequence_length = max_sequence_length
        if guidance != 1.0 and not self.transformer.config.guidance_embeds:
            raise ConfigError(f"guidance {guidance}: this FLUX.1 has no guidance embedding (as [schnell]); use 1")

    def num_cut(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than T5 reads."""
        return num_longer(self.pipeline.tokenizer_2, prompts, self.max_sequence_length)

    def embed(self, prompts: Sequence[str]) -> FluxCondition:
        """Embed prompts; gradients flow to text encoders that require them."""
        with quiet_diffusers(), autocast(self.device, self.precision):
            embeds, pooled, _ = self.pipeline.encode_prompt(
                list(prompts), None, max_sequence_length=self.max_sequence_length
            )
        return FluxCondition(embeds, pooled)

    @property
    def latent_channels(self) -> int:
        return int(self.transformer.config.in_channels) // 4

    def times(self, num_steps: int) -> Tensor:
        """The pipeline's own times: evenly spaced, then shifted by the number of tokens ([dev]) or not ([schnell])."""
        return times_for_tokens(self.pipeline.scheduler, num_steps, self.latent_side**2 // 4)

    def velocity(self, z: Tensor, t: float | Tensor, condition: FluxCondition) -> Tensor:
        n, _, height, width = z.shape
        time = torch.as_tensor(t, dtype=torch.float32, device=z.device).expand(n)
        scale = torch.full((n,), self.guidance, device=z.device) if self.transformer.config.guidance_embeds else None
        with autocast(self.device, self.precision):
            out = self.transformer(
                hidden_states=pack(z.to(self.transformer.dtype)), timestep=time, guidance=scale,
                pooled_projections=condition.pooled, encoder_hidden_states=condition.embeds,
                txt_ids=torch.zeros(condition.embeds.shape[1], 3, device=z.device),
                img_ids=_positions(height // 2, width // 2, z.device), return_dict=False,
            )  # fmt: skip
        return unpack(flow.at_least_fp32(torch.as_tensor(out[0])))


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """0, row and column of every token, (height * width, 3)."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.cartesian_prod(torch.zeros(1, dtype=rows.dtype, device=device), rows, columns).float()
