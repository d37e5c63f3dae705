"""From pictures to Qwen-VL's patches in differentiable torch: sizes that fit the grid, patches in merge order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rewarddance.core.errors import InputError
from rewarddance.core.media import MAX_ASPECT
from rewarddance.vlm.preprocess import (
    clip_settings,
    normalised,
    processor_settings,
    resized,
    save_clip_settings,
    save_settings,
)

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
        clip_min_pixels, clip_max_pixels: the same for a clip; those of pictures when None.
        whole_clips: the bounds of a clip are for all its frames together (Qwen3-VL), not for each (Qwen2.5-VL).
    """

    patch: int = 14
    merge: int = 2
    temporal: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    clip_min_pixels: int | None = None
    clip_max_pixels: int | None = None
    whole_clips: bool = False

    @classmethod
    def load(
        cls, folder: Path, patch: int, merge: int, temporal: int, *, whole_clips: bool = False
    ) -> PatchPreprocessor:
        """From the processor's settings, with the old or the new names of the bounds.

        Raises:
            ConfigError: the folder has no settings.
        """
        settings = processor_settings(folder)
        low, high = _bounds(settings)
        clip_low, clip_high = _bounds(clip_settings(folder))
        return cls(
            patch,
            merge,
            temporal,
            low or cls.min_pixels,
            high or cls.max_pixels,
            tuple(settings.get("image_mean", CLIP_MEAN)),
            tuple(settings.get("image_std", CLIP_STD)),
            clip_low,
            clip_high,
            whole_clips,
        )

    def save(self, folder: Path) -> None:
        size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        patch = {"patch_size": self.patch, "merge_size": self.merge, "temporal_patch_size": self.temporal}
        save_settings(folder, "Qwen2VLImageProcessor", size, self.mean, self.std, **patch)
        if self.clip_min_pixels and self.clip_max_pixels:
            kind = "Qwen3VLVideoProcessor" if self.whole_clips else "Qwen2VLVideoProcessor"
            clip = {"shortest_edge": self.clip_min_pixels, "longest_edge": self.clip_max_pixels}
            save_clip_settings(folder, kind, clip, self.mean, self.std, **patch)

    def size(self, height: int, width: int, origin: str | None = None, frames: int | None = None) -> tuple[int, int]:
        """(height, width) after resizing: multiples of patch * merge within the bounds, with nearly the same shape.

        Args:
            frames: of a clip that are shown; None for a picture.

        Raises:
            InputError: over 200 times longer than wide.
        """
        if max(height, width) / min(height, width) > MAX_ASPECT:
            raise InputError(f"{origin or 'picture'}: {width}x{height} pixels is too narrow to judge")
        step = self.patch * self.merge
        low, high = self.min_pixels, self.max_pixels
        shown, padded = 1, 1  # frames that the bounds are for
        if frames is not None:
            low, high = self.clip_min_pixels or low, self.clip_max_pixels or high
            if self.whole_clips:
                shown, padded = frames, round(frames / self.temporal) * self.temporal
                if (enlarge := max(step / height, step / width)) > 1:
                    height, width = int(height * enlarge), int(width * enlarge)
        h, w = round(height / step) * step, round(width / step) * step
        if padded * h * w > high:
            shrink = math.sqrt(shown * height * width / high)
            h, w = (max(step, math.floor(side / shrink / step) * step) for side in (height, width))
        elif padded * h * w < low:
            grow = math.sqrt(low / (shown * height * width))
            h, w = (math.ceil(side * grow / step) * step for side in (height, width))
        return h, w

    def grid(self, height: int, width: int, origin: str | None = None, frames: int | None = None) -> tuple[int, int]:
        """Rows and columns of patches."""
        h, w = self.size(height, width, origin, frames)
        return h // self.patch, w // self.patch

    def __call__(self, pixels: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """A picture, (3, H, W) in [0, 1], to (patches, 3 * temporal * patch * patch).

        The patches of a token stand side by side. A temporal patch of a clip is (temporal, 3, H, W).

        Args:
            grid: rows and columns of patches; those of the picture when None.
        """
        frames = pixels.float().view(-1, *pixels.shape[-3:])
        m, p = self.merge, self.patch
        rows, columns = grid or self.grid(*pixels.shape[-2:])
        x = normalised(resized(frames, rows * p, columns * p), self.mean, self.std)
        x = x.view(-1, 3, rows // m, m, p, columns // m, m, p).permute(2, 5, 3, 6, 1, 0, 4, 7)
        patches = x.reshape(-1, 3, len(frames), p, p).expand(-1, -1, self.temporal, -1, -1)
        return patches.reshape(len(patches), -1)


def _bounds(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Least and most pixels, by the old or the new names; None where the settings name none."""
    size = settings.get("size") or {}
    low = size.get("shortest_edge") or settings.get("min_pixels")
    high = size.get("longest_edge") or settings.get("max_pixels")
    return None if low is None else int(low), None if high is None else int(high)
