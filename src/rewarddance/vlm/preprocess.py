"""From pictures to a VLM's pixel values in differentiable torch, so that judgements have gradients to pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media, check_size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_SETTINGS = "video_preprocessor_config.json"


def processor_settings(folder: Path) -> dict[str, Any]:
    """Settings of a checkpoint's image processor: `preprocessor_config.json`, or a part of `processor_config.json`.

    transformers writes one of the two files, depending on its version. Without them the normalisation is unknown, and
    all answers would be slightly wrong.

    Raises:
        ConfigError: the folder has neither.
    """
    single, shared = folder / "preprocessor_config.json", folder / "processor_config.json"
    if single.is_file():
        settings: dict[str, Any] = json.loads(single.read_text())
        return settings
    if shared.is_file():
        settings = json.loads(shared.read_text())
        if isinstance(settings.get("image_processor"), dict):
            return dict(settings["image_processor"])
    raise ConfigError(
        f"{folder}: no preprocessor_config.json and no image_processor in processor_config.json; copy the file of the "
        "checkpoint that it was made from"
    )


def clip_settings(folder: Path) -> dict[str, Any]:
    """Settings of a checkpoint's processor of clips: `video_preprocessor_config.json`, or a part of
    `processor_config.json`; empty where it has none, and clips are prepared as pictures.
    """
    single, shared = folder / CLIP_SETTINGS, folder / "processor_config.json"
    settings: Any = None
    if single.is_file():
        settings = json.loads(single.read_text())
    elif shared.is_file():
        settings = json.loads(shared.read_text()).get("video_processor")
    return dict(settings) if isinstance(settings, dict) else {}


def save_settings(
    folder: Path, kind: str, size: Mapping[str, int], mean: Sequence[float], std: Sequence[float], **settings: int
) -> None:
    """Write `preprocessor_config.json` of a transformers image processor."""
    _write(folder / "preprocessor_config.json", {"image_processor_type": kind, **settings}, size, mean, std)


def save_clip_settings(
    folder: Path, kind: str, size: Mapping[str, int], mean: Sequence[float], std: Sequence[float], **settings: int
) -> None:
    """Write `video_preprocessor_config.json` of a transformers video processor."""
    _write(folder / CLIP_SETTINGS, {"video_processor_type": kind, **settings}, size, mean, std)


def _write(
    path: Path, settings: Mapping[str, Any], size: Mapping[str, int], mean: Sequence[float], std: Sequence[float]
) -> None:
    content = {
        **settings,
        "size": size,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_resize": True,
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, 3, H, W) with the channels' mean subtracted, divided by their standard deviation."""
    shift, scale = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (mean, std))
    return (pixels - shift) / scale


def resized(frames: Tensor, height: int, width: int) -> Tensor:
    """(F, 3, H, W) in [0, 1] to (F, 3, height, width): bicubic, anti-aliased, differentiable.

    The width is resized first, then the height, with a clamp to [0, 1] after each. The processors of public checkpoints
    do the same on bytes. Without the clamp, overshoots at hard edges would change the second pass by up to 30/255. The
    remaining difference is rounding to bytes, about 1/255. From version 13 Pillow resizes the height first if it
    shrinks a lot. This moves single pixels at hard edges by up to 25/255; public checkpoints were trained earlier.
    """
    for size in ((frames.shape[-2], width), (height, width)):
        if frames.shape[-2:] != size:
            frames = F.interpolate(frames, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return frames


@dataclass(frozen=True)
class Preprocessor:
    """Resize to a fixed size (bicubic, anti-aliased) and normalise by channel.

    Args:
        tiles: squares that a picture is cut into at most, beside a small view of the whole; 1 is the view alone.
    """

    height: int
    width: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    tiles: int = 1

    @classmethod
    def square(cls, side: int) -> Preprocessor:
        return cls(side, side)

    @classmethod
    def load(cls, folder: Path, side: int) -> Preprocessor:
        """From the processor's settings. Defaults: `side` pixels and ImageNet's statistics.

        Raises:
            ConfigError: the folder has no settings.
        """
        settings = processor_settings(folder)
        size = settings.get("size") or {}
        return cls(
            int(size.get("height", side)),
            int(size.get("width", side)),
            tuple(settings.get("image_mean", IMAGENET_MEAN)),
            tuple(settings.get("image_std", IMAGENET_STD)),
        )

    def save(self, folder: Path) -> None:
        size = {"height": self.height, "width": self.width}
        save_settings(folder, "GotOcr2ImageProcessor", size, self.mean, self.std)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of squares for a picture of this size: the grid with the nearest aspect ratio.

        Of several grids with this ratio, a larger one is taken if the picture has more than half its pixels (InternVL
        1.5, arXiv 2404.16821, dynamic resolution).

        >>> Preprocessor(448, 448, tiles=12).grid(900, 1800), Preprocessor(448, 448).grid(900, 1800)
        ((2, 4), (1, 1))
        """
        if self.tiles == 1:
            return 1, 1
        best, smallest = (1, 1), math.inf
        for squares in range(1, self.tiles + 1):
            for rows in (r for r in range(squares, 0, -1) if squares % r == 0):
                columns = squares // rows
                difference = abs(width / height - columns / rows)
                larger = width * height > 0.5 * squares * self.width * self.height
                if difference < smallest or (difference == smallest and larger):
                    best, smallest = (rows, columns), difference
        return best

    def squares(self, frames: Tensor, origin: str | None = None) -> Tensor:
        """(F, 3, H, W) to (F, squares, 3, height, width): row by row, then a view of the whole if there are several."""
        rows, columns = self.grid(*frames.shape[-2:])
        whole = self.frames(frames, origin)
        if rows * columns == 1:
            return whole[:, None]
        large = replace(self, height=rows * self.height, width=columns * self.width).frames(frames, origin)
        cut = large.view(-1, 3, rows, self.height, columns, self.width).permute(0, 2, 4, 1, 3, 5)
        return torch.cat([cut.flatten(1, 2), whole[:, None]], 1)

    def frames(self, frames: Tensor, origin: str | None = None) -> Tensor:
        """(F, 3, H, W) in [0, 1] to (F, 3, height, width), normalised. Gradients flow."""
        h, w = frames.shape[-2:]
        check_size(h, w, origin)
        return normalised(resized(frames.float(), self.height, self.width), self.mean, self.std)

    def __call__(self, media: Sequence[Media]) -> Tensor:
        """First frames of several pictures, (B, 3, height, width)."""
        if len({m.size for m in media}) == 1:
            return self.frames(torch.cat([m.frames[:1] for m in media]), media[0].origin)
        return torch.cat([self.frames(m.frames[:1], m.origin) for m in media])
