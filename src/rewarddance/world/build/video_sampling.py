"""Sample clips of held-out prompts from the embedded video models, batched on their device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rewarddance.core.config import Computed
from rewarddance.core.media import Media
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Prompt
from rewarddance.generator.trace import sample_latents
from rewarddance.generator.wan import ClipShape, WanGenerator, WanImageToVideoGenerator
from rewarddance.world.motion.batches import PROMPT_TOKENS
from rewarddance.world.motion.benchmark import ActionPrompt
from rewarddance.world.motion.render import Clip
from rewarddance.world.motion.scene import FPS, NUM_FRAMES
from rewarddance.world.scene import CANVAS

SHAPE = ClipShape(NUM_FRAMES, FPS, CANVAS, PROMPT_TOKENS)
"""Shape of the embedded models' clips."""


def generator_of(pipeline: Any, guidance: float, computed: Computed) -> WanGenerator:
    """The adapter around an embedded pipeline."""
    config = pipeline.transformer.config
    kind = WanImageToVideoGenerator if config.in_channels > config.out_channels else WanGenerator
    generator = kind(pipeline, guidance, SHAPE)
    generator.precision = computed
    return generator


@torch.no_grad()
def sample_clips(
    generator: WanGenerator, prompts: Sequence[ActionPrompt], num_steps: int, seed: int, batch: int = 64
) -> Clip:
    """One clip for every prompt, uint8 (N, F, H, W, 3). Image-to-video begins with the prompts' first frames."""
    clips = []
    for begin in range(0, len(prompts), batch):
        part = prompts[begin : begin + batch]
        rng = torch.Generator().manual_seed(seed_of(seed, "video-samples", begin))
        requests = [
            Prompt(p.text, condition=Media.from_numpy(p.first_frame) if generator.from_picture else None) for p in part
        ]
        condition = generator.condition(requests)
        pixels = generator.decode_tensor(
            sample_latents(generator, condition, generator.noise(len(part), rng), num_steps)
        )
        clips.append((pixels * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy())
    return np.concatenate(clips)
