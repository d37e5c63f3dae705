"""Files of samples: pictures as PNG, clips as MP4 with a contact sheet of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewarddance.core.clips import contact_sheet
from rewarddance.core.media import Media
from rewarddance.core.progress import say

SHEET = "sheet.png"
COLUMNS, ROWS, SIDE = 9, 64, 128
"""Limits of the sheet: frames of a clip, number of clips, pixels of a frame's longer side."""


@dataclass
class SampleFiles:
    """Writes samples into a folder, numbered from 0.

    Without PyAV (the extra `video`) a clip becomes a contact sheet of its frames.
    """

    folder: Path
    num: int = 0
    rows: list[NDArray[np.uint8]] = field(default_factory=list)
    """Frames of the clips for the sheet."""

    def write(self, media: Media) -> Path:
        """Write one sample; returns its file."""
        stem, self.num = self.folder / f"{self.num:03d}", self.num + 1
        if media.num_frames == 1:
            media.save(stem.with_suffix(".png"))
            return stem.with_suffix(".png")
        if len(self.rows) < ROWS:
            self.rows.append(_small(media))
        if find_spec("av") is not None:
            media.save(stem.with_suffix(".mp4"))
            return stem.with_suffix(".mp4")
        if self.num == 1:
            say("clips are written as contact sheets, because PyAV is missing; pip install 'rewarddance[video]'")
        media.contact_sheet().save(stem.with_suffix(".png"))
        return stem.with_suffix(".png")

    def write_sheet(self) -> Path | None:
        """Write one picture with a row for each of the first `ROWS` clips; None without clips."""
        if not self.rows:
            return None
        contact_sheet(np.concatenate(self.rows), columns=len(self.rows[0])).save(self.folder / SHEET)
        return self.folder / SHEET


def _small(clip: Media) -> NDArray[np.uint8]:
    """Up to `COLUMNS` frames, evenly spread, each no larger than `SIDE`."""
    chosen = np.linspace(0, clip.num_frames - 1, min(COLUMNS, clip.num_frames)).round().astype(int)
    frames: NDArray[np.uint8] = clip.to_numpy()[chosen]
    height, width = clip.size
    scale = min(1.0, SIDE / max(height, width))
    if scale == 1:
        return frames
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BOX)) for x in frames])


def fitted(picture: Media, side: int) -> Media:
    """The middle square of a picture, scaled to `side` pixels: what an image-to-video generator begins with."""
    height, width = picture.size
    if height == width == side:
        return picture
    least = min(height, width)
    left, top = (width - least) // 2, (height - least) // 2
    square = picture.to_pil().crop((left, top, left + least, top + least))
    return Media.from_pil(square.resize((side, side), Image.Resampling.LANCZOS), origin=picture.origin)
