"""Colour harmony: how near a picture's hues lie to one of Matsuda's templates on the hue wheel.

Templates, sectors and the weighting by saturation are those of Cohen-Or et al. 2006, "Color Harmonization". The scale
is ours: 1 if all hues lie inside a template's sectors, 0 for hues spread evenly over the wheel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from rewarddance.core.media import Media
from rewarddance.reward.composition import shrunk

BINS = 72
TEMPLATES: dict[str, tuple[tuple[float, float], ...]] = {
    "i": ((0, 18),),
    "V": ((0, 93.6),),
    "L": ((0, 18), (90, 79.2)),
    "I": ((0, 18), (180, 18)),
    "T": ((0, 180),),
    "Y": ((0, 93.6), (180, 18)),
    "X": ((0, 93.6), (180, 93.6)),
}
"""Centre and width of every sector, degrees; a template may be turned."""
NEUTRAL = 0.5
"""Value of a picture without colours."""
HALF_COLOURED = 0.02
"""Mean chroma at which a picture counts half as coloured."""


@cache
def template_distances() -> Tensor:
    """Degrees from every hue to the nearest sector, (BINS, templates x turns)."""
    hues = torch.arange(BINS) * (360 / BINS)
    columns = []
    for sectors in TEMPLATES.values():
        for turn in hues.tolist():
            apart = [((hues - turn - c + 180) % 360 - 180).abs().sub(w / 2).clamp(min=0) for c, w in sectors]
            columns.append(torch.stack(apart).amin(0))
    return torch.stack(columns, 1)


def hue_histogram(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Chroma in every bin of hue, (N, BINS), and mean chroma, (N,), of pixels (N, 3, H, W) in [0, 1].

    A pixel is shared between its two nearest bins, so that the histogram is differentiable.
    """
    red, green, blue = pixels.flatten(2).unbind(1)
    a, b = red - (green + blue) / 2, (green - blue) * (3**0.5 / 2)
    chroma = (a.square() + b.square() + 1e-12).sqrt()
    coloured = chroma > 1e-4  # the angle of a grey pixel has no gradient
    angle = torch.atan2(torch.where(coloured, b, 0.0), torch.where(coloured, a, 1.0))
    place = torch.remainder(angle / (2 * torch.pi) * BINS, BINS)
    low = place.detach().floor()
    share = place - low
    weight = torch.where(coloured, chroma, 0.0)
    out = torch.zeros(len(pixels), BINS, device=pixels.device, dtype=weight.dtype)
    out = out.scatter_add(1, low.long() % BINS, weight * (1 - share))
    out = out.scatter_add(1, (low.long() + 1) % BINS, weight * share)
    return out, chroma.mean(1)


def colour_harmony(media: Sequence[Media]) -> Tensor:
    """(N,) in [0, 1]; near `NEUTRAL` for a picture without colours. Gradients flow."""
    histogram, chroma = hue_histogram(shrunk(media))
    table = template_distances().to(histogram)
    share = histogram / (histogram.sum(1, keepdim=True) + 1e-9)
    even = table.mean(0).amin()
    harmony = 1 - ((share @ table).amin(1) / even).clamp(max=1)
    coloured = chroma / (chroma + HALF_COLOURED)
    return coloured * harmony + (1 - coloured) * NEUTRAL
