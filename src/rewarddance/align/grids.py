"""Sample grids: at every probe one picture with samples of the same prompts and noises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.Image import Image as PilImage

from rewarddance.core.clips import spread
from rewarddance.core.media import Media
from rewarddance.core.runs import write_json

ROWS, COLUMNS = 4, 3
"""Largest number of prompts, and of noises, in a grid."""
SIDE = 256
"""A sample is shrunk to this width and height in pixels at most."""
FRAMES, FRAME_SIDE, GAP = 5, 128, 4
"""Largest number of frames of a clip, largest side of a frame, and white gap between clips, both in pixels."""


def save_grid(folder: Path, step: int, prompts: Sequence[str], pictures: Sequence[Media], num_noises: int) -> Path:
    """Write `step-000050.png`, one row a prompt and one column a noise, and `grids.json` with the prompts of the rows.

    Args:
        pictures: `num_noises` pictures or clips of every prompt, those of one prompt together. A clip is shown
            by `FRAMES` frames from left to right, evenly spread, first and last included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns, rows = min(COLUMNS, num_noises), min(ROWS, len(prompts))
    shown = [pictures[row * num_noises + column] for row in range(rows) for column in range(columns)]
    cells = [_cell(media) for media in shown]
    gap = GAP if any(media.is_clip for media in shown) else 0
    width, height = (max(sizes) + gap for sizes in zip(*(image.size for image in cells), strict=True))
    grid = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, image in enumerate(cells):
        grid.paste(image, (i % columns * width, i // columns * height))
    target = folder / f"step-{step:06d}.png"
    grid.save(target)
    frames = max(min(FRAMES, media.num_frames) for media in shown)
    write_json(folder / "grids.json", {"prompts": list(prompts[:rows]), "noises": columns, "frames": frames})
    return target


def _cell(media: Media) -> PilImage:
    """A picture, or frames of a clip side by side."""
    if not media.is_clip:
        image = media.to_pil()
        image.thumbnail((SIDE, SIDE))
        return image
    pixels = media.to_bytes().permute(0, 2, 3, 1).numpy()[spread(media.num_frames, FRAMES)]
    frames = [Image.fromarray(x) for x in pixels]
    for frame in frames:
        frame.thumbnail((FRAME_SIDE, FRAME_SIDE))
    strip = Image.new("RGB", (sum(frame.width for frame in frames), frames[0].height))
    for k, frame in enumerate(frames):
        strip.paste(frame, (k * frame.width, 0))
    return strip
