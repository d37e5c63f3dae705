"""Rules of composition, differentiable: thirds, balance, margins, symmetry.

They suit pictures with a subject on a plain background. The background is the median colour of the border. The more a
pixel's colour differs from it, the more the pixel belongs to the subject. All values are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.media import Media

SIDE = 48
"""Pictures are averaged down to this side first, so that fine texture does not count as subject."""
BAND = 3
"""Width of the border in these pixels."""
EDGE = 0.15
"""Colour distance (root mean square of channels) at which a pixel is half a subject."""
HALF_PRESENT = 0.02
"""Share of the picture at which a subject counts half as present."""
RULES = ("thirds", "balance", "margins", "symmetry")


def shrunk(media: Sequence[Media]) -> Tensor:
    """First frames averaged to (N, 3, SIDE, SIDE)."""
    return torch.cat([F.adaptive_avg_pool2d(m.frames[:1].float(), SIDE) for m in media])


def subject(pixels: Tensor) -> Tensor:
    """How far every pixel belongs to the subject, (N, H, W), from (N, 3, H, W)."""
    rim = _border(pixels.shape[-1], pixels.device)
    ground = pixels[:, :, rim].median(-1).values
    distance = (pixels - ground[:, :, None, None]).square().mean(1)
    return distance / (distance + EDGE**2)


def _border(side: int, device: torch.device) -> Tensor:
    rim = torch.ones(side, side, dtype=torch.bool, device=device)
    rim[BAND:-BAND, BAND:-BAND] = False
    return rim


def rules(mask: Tensor) -> dict[str, Tensor]:
    """Each rule of a subject's mask (N, H, W), by name, (N,) each.

    - thirds: 1 if the subject's centre of mass lies on one of the four crossings of thirds, falling linearly to 0 at a
      distance of sqrt(2)/3 (a corner of the picture).
    - balance: 1 if the centre of mass is the picture's centre, 0 at half a side from it or more.
    - margins: 1 if none of the subject lies in the border, 0 if the subject is as dense there as in the whole picture.
    - symmetry: 1 if the left half mirrors the right, 0 if they share nothing.
    """
    side = mask.shape[-1]
    total = mask.sum((1, 2)) + 1e-6
    ticks = (torch.arange(side, device=mask.device) + 0.5) / side
    centre = torch.stack([(mask.sum(1) * ticks).sum(1), (mask.sum(2) * ticks).sum(1)], 1) / total[:, None]
    crossings = torch.tensor([[x / 3, y / 3] for x in (1, 2) for y in (1, 2)], device=mask.device)
    nearest = _length(centre[:, None] - crossings).amin(1)
    rim = _border(side, mask.device)
    outside = mask[:, rim].sum(1) / total / rim.float().mean()
    mirrored = mask.flip(2)
    return {
        "thirds": (1 - nearest * 3 / 2**0.5).clamp(min=0),
        "balance": (1 - 2 * _length(centre - 0.5)).clamp(min=0),
        "margins": (1 - outside).clamp(min=0),
        "symmetry": 1 - (mask - mirrored).abs().sum((1, 2)) / (mask + mirrored + 1e-6).sum((1, 2)),
    }


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length over the last axis, with a finite gradient at 0."""
    return (vectors.square().sum(-1) + 1e-12).sqrt()


def clearness(mask: Tensor) -> Tensor:
    """How clear the subject is, (N,): 0 for a blank picture, near 0 where almost every pixel is subject."""
    share = mask.mean((1, 2))
    return share / (share + HALF_PRESENT) * (1 - mask[:, _border(mask.shape[-1], mask.device)].mean(1))


def composition(media: Sequence[Media], weights: Mapping[str, float]) -> Tensor:
    """Weighted mean of the rules times clearness, (N,) in [0, 1]. Gradients flow.

    Args:
        weights: by name of the rule; they need not sum to 1.
    """
    mask = subject(shrunk(media))
    values = rules(mask)
    mean = torch.stack([weights[name] * values[name] for name in RULES]).sum(0) / sum(weights[n] for n in RULES)
    return mean * clearness(mask)
