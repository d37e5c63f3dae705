"""Pillow opens pictures here, and turns them into RGB. No torch here, so that the annotation desk starts fast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""Pillow's names of the file formats that are read."""
MAX_METADATA = 64 << 20
"""Bytes of colour profile or text in a PNG. Pillow's own limit of 1 MiB refuses photographs with large profiles."""


def unreadable() -> tuple[type[Exception], ...]:
    """The errors with which Pillow refuses a file, also while it decodes pixels."""
    from PIL import Image

    return OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError


def open_image(source: str | Path | BinaryIO, formats: Sequence[str] = FORMATS) -> PilImage:
    """Open a picture with Pillow, whose pixels are not decoded yet. All code that opens a picture calls this.

    Pillow's limits of metadata belong to the process, so each call sets them.

    Raises:
        one of `unreadable`: not a picture of `formats`, damaged, or with too many pixels.
    """
    from PIL import Image, PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_METADATA
    return Image.open(source, formats=tuple(formats))


def upright(image: PilImage) -> PilImage:
    """The picture with its EXIF rotation applied."""
    from PIL import ImageOps

    turned: PilImage = ImageOps.exif_transpose(image)
    return turned


def as_rgb(image: PilImage) -> PilImage:
    """The picture in mode RGB, 8 bits a channel: transparency is laid on white, 16 bits of grey are scaled to 8."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, which PIL's convert("RGB") would cut off at 255
        grey = np.asarray(image, np.float64) / 65535
        image = Image.fromarray((grey.clip(0, 1) * 255 + 0.5).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")
