"""Sample clips of held-out prompts from the embedded video models, batched on their device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewarddance.core.config import Computed
from rewarddance.core.device import autocast
from rewarddance.core.streams import seed_of
from rewarddance.generator import flow
from rewarddance.generator.whole_clip import WanAutoencoder
from rewarddance.world.build.tiny_video import TEMPORAL
from rewarddance.world.build.video_autoencoder import as_uint8
from rewarddance.world.motion.batches import PAD, prompt_ids
from rewarddance.world.motion.benchmark import ActionPrompt
from rewarddance.world.motion.render import Clip
from rewarddance.world.motion.scene import NUM_FRAMES
from rewarddance.world.scene import CANVAS


def embed(text_encoder: Any, ids: Tensor) -> Tensor:
    """Embeddings of prompts as the Wan pipelines make them: those of padding are zero, (B, T, D)."""
    mask = (ids != PAD).long()
    states = text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.as_tensor(states * mask[..., None])


@torch.no_grad()
def picture_condition(autoencoder: WanAutoencoder, first: Tensor, num_frames: int) -> Tensor:
    """What `WanImageToVideoPipeline` gives its transformer beside the noisy latents.

    A mask, 1 in the latent frame of the picture, and the latents of a clip whose frames after the picture are mid-grey.

    Args:
        first: pictures in [-1, 1], (B, 3, H, W).

    Returns:
        (B, TEMPORAL + C, f, h, w).
    """
    grey = first.new_zeros(*first.shape[:2], num_frames - 1, *first.shape[2:])
    z = autoencoder.encode(torch.cat([first[:, :, None], grey], 2))
    mask = z.new_zeros(len(z), TEMPORAL, *z.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, z], 1)


class Sampler:
    """Euler's method with classifier-free guidance.

    Args:
        pipeline: text-to-video or image-to-video.
        computed: precision of text encoder and transformer.
        num_steps: of the sampler.
    """

    def __init__(self, pipeline: Any, computed: Computed, num_steps: int, batch: int = 64) -> None:
        self.pipeline, self.computed, self.num_steps, self.batch = pipeline, computed, num_steps, batch
        self.autoencoder = WanAutoencoder(pipeline.vae)
        config = pipeline.transformer.config
        self.from_picture = bool(config.in_channels > config.out_channels)

    def __call__(self, prompts: Sequence[ActionPrompt], guidance: float, seed: int) -> Clip:
        """One clip for every prompt, uint8 (N, F, H, W, 3). Equal seeds and places give equal noise."""
        clips = [
            self._sample(prompts[i : i + self.batch], guidance, seed_of(seed, "video-samples", i))
            for i in range(0, len(prompts), self.batch)
        ]
        return np.concatenate(clips)

    @torch.no_grad()
    def _sample(self, prompts: Sequence[ActionPrompt], guidance: float, seed: int) -> Clip:
        device, config = self.pipeline.device, self.pipeline.vae.config
        frames = 1 + (NUM_FRAMES - 1) // config.scale_factor_temporal
        side = CANVAS // config.scale_factor_spatial
        shape = (len(prompts), config.z_dim, frames, side, side)
        z = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
        beside = self._condition(prompts)
        words = [p.text for p in prompts] + ([""] * len(prompts) if guidance != 1 else [])
        with autocast(device, self.computed):
            text = embed(self.pipeline.text_encoder, torch.from_numpy(prompt_ids(words)).to(device))
        times = flow.times(self.num_steps, float(self.pipeline.scheduler.config.shift)).tolist()
        for now, after in zip(times, times[1:], strict=False):
            z = flow.step(z, self._velocity(z, now, text, beside, guidance), now, after).mean
        return np.asarray(as_uint8(self.autoencoder.decode(z)).cpu().numpy())

    def _condition(self, prompts: Sequence[ActionPrompt]) -> Tensor | None:
        if not self.from_picture:
            return None
        first = torch.from_numpy(np.stack([p.first_frame for p in prompts])).to(self.pipeline.device)
        return picture_condition(self.autoencoder, first.permute(0, 3, 1, 2).float() / 127.5 - 1, NUM_FRAMES)

    def _velocity(self, z: Tensor, t: float, text: Tensor, beside: Tensor | None, guidance: float) -> Tensor:
        x = z if beside is None else torch.cat([z, beside], 1)
        x = x if guidance == 1 else torch.cat([x, x])
        time = torch.full((len(x),), t * 1000, device=z.device)
        with autocast(z.device, self.computed):
            v = self.pipeline.transformer(
                hidden_states=x, timestep=time, encoder_hidden_states=text, return_dict=False
            )[0].float()  # fmt: skip
        if guidance == 1:
            return torch.as_tensor(v)
        full, empty = v.chunk(2)
        return torch.as_tensor(empty + guidance * (full - empty))
