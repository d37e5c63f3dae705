"""Files of samples: pictures as PNG, clips as MP4 with a contact sheet of all of them; pairs from before and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewarddance.core.clips import animation, contact_sheet
from rewarddance.core.media import Media
from rewarddance.core.progress import say
from rewarddance.core.runs import write_json
from rewarddance.core.task import text_of
from rewarddance.evaluate.generator import Samples

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


def save_pairs(
    folder: Path,
    before: Samples,
    after: Samples,
    value_before: np.ndarray,
    value_after: np.ndarray,
    reward: np.ndarray | None = None,
    num: int = 24,
) -> None:
    """First noise of some prompts, before and after, as PNG files with a list of prompts and values (P, noises).

    Clips become contact sheets, and one animated WebP of both.

    Args:
        reward: the judge's P(after is better), (P, noises), where the values are another measure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for k in range(0, len(before.prompts), max(1, len(before.prompts) // num)):
        for name, samples in (("before", before), ("after", after)):
            media, file = samples.media[k][0], folder / f"{k:03d}_{name}.png"
            (media.to_pil() if media.num_frames == 1 else media.contact_sheet()).save(file)
        both = [s.media[k][0] for s in (before, after)]
        if (fps := both[0].fps) is not None:
            (folder / f"{k:03d}.webp").write_bytes(animation([m.to_numpy() for m in both], fps))
        entry: dict[str, Any] = {"index": k, "prompt": text_of(before.prompts[k])}
        values = {"before": value_before, "after": value_after} | ({} if reward is None else {"reward": reward})
        listed.append(entry | {n: None if np.isnan(v[k, 0]) else float(v[k, 0]) for n, v in values.items()})
    write_json(folder / "samples.json", listed)
