"""How much a clip moves and flickers, from its pixels alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TOP_SHARE = 0.05
"""Share of the pixels that counts: those that change most, as in VBench's dynamic degree (arXiv 2311.17982)."""
MOVES = 0.012
"""A clip with a higher dynamic degree moves. Rendered clips of development prompts have at least 0.015 where something
moves. Where nothing moves they have 0, and 0.008 with independent pixel noise of deviation 0.01."""


def dynamic_degree(frames: Tensor) -> float:
    """Mean change from frame to frame of the 5 per cent of the pixels that change most, in [0, 1]; 0 for a picture.

    VBench measures the optical flow of these pixels. This measures their values, as means over 3x3 pixels so that noise
    counts less. Flicker of whole areas counts as motion.

    Args:
        frames: (F, 3, H, W) in [0, 1].
    """
    if len(frames) < 2:
        return 0.0
    smooth = F.avg_pool2d(frames, min(3, *frames.shape[-2:]), 1)
    change = (smooth[1:] - smooth[:-1]).abs().mean(1).flatten(1)
    num = max(1, round(TOP_SHARE * change.shape[1]))
    return float(torch.topk(change, num, 1).values.mean())


def flicker(frames: Tensor) -> float:
    """Mean absolute difference of a frame from the mean of its two neighbours, in [0, 1]; 0 for fewer than 3 frames.

    It is 0 for a still clip and for an even change of brightness. Moving objects add a little at their edges.

    Args:
        frames: (F, 3, H, W) in [0, 1].
    """
    if len(frames) < 3:
        return 0.0
    return float((frames[1:-1] - (frames[:-2] + frames[2:]) / 2).abs().mean())
