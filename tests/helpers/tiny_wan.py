"""The embedded Wan pipelines with random weights, small enough to align in seconds, and judges of their clips."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline

from rewarddance.core.types import Verdict
from rewarddance.generator.wan import WanGenerator, WanImageToVideoGenerator
from rewarddance.world.build.tiny_video import (
    PROMPT_TOKENS,
    SHIFT,
    new_video_autoencoder,
    new_video_text_encoder,
    new_video_tokenizer,
    new_video_transformer,
)
from rewarddance.world.build.video_sampling import SHAPE
from rewarddance.world.motion.scene import NUM_FRAMES
from rewarddance.world.scene import CANVAS

CALL = {"height": CANVAS, "width": CANVAS, "num_frames": NUM_FRAMES, "max_sequence_length": PROMPT_TOKENS}
"""Arguments of every call. Padding is read as zeros, and with the pipelines' default of 512 tokens it would outweigh
the words."""


def tiny_video_pipeline(seed=0, from_picture=False, num_layers=1):
    """A pipeline with random weights, `CANVAS` pixels, `NUM_FRAMES` frames, all parts in evaluation mode."""
    torch.manual_seed(seed)
    tokenizer = new_video_tokenizer()
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": new_video_text_encoder(tokenizer),
        "vae": new_video_autoencoder(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        "transformer": new_video_transformer(from_picture, num_layers),
    }
    return WanImageToVideoPipeline(**parts) if from_picture else WanPipeline(**parts)


def tiny_wan(from_picture=False, experts=False):
    """A frozen generator whose output layers are not zero. The second of two experts takes the times below 0.875."""
    pipeline = tiny_video_pipeline(from_picture=from_picture, num_layers=1)
    rng = torch.Generator().manual_seed(0)
    if experts:
        second = {"transformer_2": new_video_transformer(from_picture, num_layers=1), "boundary_ratio": 0.875}
        pipeline = type(pipeline)(**pipeline.components | second)
    transformers = [pipeline.components[n] for n in ("transformer", "transformer_2") if pipeline.components.get(n)]
    with torch.no_grad():
        for name, p in (x for t in transformers for x in t.named_parameters()):
            if any(part in f".{name}" for part in ("time_proj.", "proj_out.", ".attn2.to_out.", "scale_shift_table")):
                p.copy_(0.1 * torch.randn(p.shape, generator=rng))
    for part in (*transformers, pipeline.text_encoder, pipeline.vae):
        part.requires_grad_(False)
    return (WanImageToVideoGenerator if from_picture else WanGenerator)(pipeline, 1.0, SHAPE)


class RedClips:
    """Redder clips are better; a reference counts half. Notes what it was asked."""

    def __init__(self):
        self.asked = []

    def judge(self, comparisons):
        self.asked += comparisons

        def red(media):
            return 0.0 if media is None else media.frames[:, 0].mean() - media.frames[:, 1:].mean()

        return Verdict.from_margin(torch.stack([20 * (red(c.candidate) - 0.5 * red(c.reference)) for c in comparisons]))
