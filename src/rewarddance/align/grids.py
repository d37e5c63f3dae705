"""Sample grids: at every probe one picture with samples of the same prompts and noises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from rewarddance.core.media import Media
from rewarddance.core.runs import write_json

ROWS, COLUMNS = 4, 3
"""Prompts and noises of a grid at most."""
SIDE = 256
"""A sample is shrunk to this width and height in pixels at most."""


def save_grid(folder: Path, step: int, prompts: Sequence[str], pictures: Sequence[Media], num_noises: int) -> Path:
    """Write `step-000050.png`, one row a prompt and one column a noise, and `grids.json` with the prompts of the rows.

    Args:
        pictures: `num_noises` pictures of every prompt, those of one prompt together. Of a clip the first frame is
            taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns, rows = min(COLUMNS, num_noises), min(ROWS, len(prompts))
    chosen = [pictures[row * num_noises + column].to_pil() for row in range(rows) for column in range(columns)]
    for image in chosen:
        image.thumbnail((SIDE, SIDE))
    width, height = (max(sizes) for sizes in zip(*(image.size for image in chosen), strict=True))
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for i, image in enumerate(chosen):
        grid.paste(image, (i % columns * width, i // columns * height))
    target = folder / f"step-{step:06d}.png"
    grid.save(target)
    write_json(folder / "grids.json", {"prompts": list(prompts[:rows]), "noises": columns})
    return target
