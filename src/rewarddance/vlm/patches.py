"""From pictures to Qwen-VL's patches in differentiable torch: sizes that fit the grid, patches in merge order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rewarddance.core.errors import InputError
from rewarddance.core.media import MAX_ASPECT
from rewarddance.vlm.preprocess import normalised, processor_settings, resized, save_settings

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PatchPreprocessor:
    """Resize to a multiple of patch * merge pixels near the picture's own size, normalise, cut into patches.

    Attributes:
        patch: side of a patch in pixels.
        merge: merge x merge patches become one token.
        temporal: frames in a patch. A picture is repeated.
        min_pixels, max_pixels: bounds of height times width.
    """

    patch: int = 14
    merge: int = 2
    temporal: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def load(cls, folder: Path, patch: int, merge: int, temporal: int) -> PatchPreprocessor:
        """From the processor's settings, with the old or the new names of the bounds.

        Raises:
            ConfigError: the folder has no settings.
        """
        settings = processor_settings(folder)
        size = settings.get("size") or {}
        return cls(
            patch,
            merge,
            temporal,
            int(size.get("shortest_edge") or settings.get("min_pixels") or cls.min_pixels),
            int(size.get("longest_edge") or settings.get("max_pixels") or cls.max_pixels),
            tuple(settings.get("image_mean", CLIP_MEAN)),
            tuple(settings.get("image_std", CLIP_STD)),
        )

    def save(self, folder: Path) -> None:
        size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        patch = {"patch_size": self.patch, "merge_size": self.merge, "temporal_patch_size": self.temporal}
        save_settings(folder, "Qwen2VLImageProcessor", size, self.mean, self.std, **patch)

    def size(self, height: int, width: int, origin: str | None = None) -> tuple[int, int]:
        """(height, width) after resizing: multiples of patch * merge within the bounds, with nearly the same shape.

        Raises:
            InputError: over 200 times longer than wide.
        """
        if max(height, width) / min(height, width) > MAX_ASPECT:
            raise InputError(f"{origin or 'picture'}: {width}x{height} pixels is too narrow to judge")
        step = self.patch * self.merge
        h, w = round(height / step) * step, round(width / step) * step
        if h * w > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            h, w = (max(step, math.floor(side / shrink / step) * step) for side in (height, width))
        elif h * w < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            h, w = (math.ceil(side * grow / step) * step for side in (height, width))
        return h, w

    def grid(self, height: int, width: int, origin: str | None = None) -> tuple[int, int]:
        """Rows and columns of patches."""
        h, w = self.size(height, width, origin)
        return h // self.patch, w // self.patch

    def __call__(self, pixels: Tensor, origin: str | None = None) -> Tensor:
        """(3, H, W) in [0, 1] to (patches, 3 * temporal * patch * patch). The patches of a token stand side by side."""
        height, width = self.size(pixels.shape[-2], pixels.shape[-1], origin)
        x = normalised(resized(pixels.float()[None], height, width), self.mean, self.std)
        m, p = self.merge, self.patch
        x = x.view(3, height // p // m, m, p, width // p // m, m, p).permute(1, 4, 2, 5, 0, 3, 6)
        rows = x.reshape(-1, 3, 1, p, p).expand(-1, -1, self.temporal, -1, -1)
        return rows.reshape(len(rows), -1)
