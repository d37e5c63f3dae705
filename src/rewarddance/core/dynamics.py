"""How much a clip moves, from its pixels alone."""

from __future__ import annotations

import torch
from torch import Tensor

TOP_SHARE = 0.05
"""Share of the pixels that counts: those that change most, as in VBench's dynamic degree (arXiv 2311.17982)."""
MOVES = 0.012
"""A clip with a higher dynamic degree moves. It divides the rendered clips of the development prompts: those of moving
prompts have at least 0.015, those that stay still have 0."""


def dynamic_degree(frames: Tensor) -> float:
    """Mean change from frame to frame of the 5 per cent of the pixels that change most, in [0, 1]; 0 for a picture.

    VBench measures the optical flow of these pixels; this measures their values, so flicker and noise count too.

    Args:
        frames: (F, 3, H, W) in [0, 1].
    """
    if len(frames) < 2:
        return 0.0
    change = (frames[1:] - frames[:-1]).abs().mean(1).flatten(1)
    num = max(1, round(TOP_SHARE * change.shape[1]))
    return float(torch.topk(change, num, 1).values.mean())
