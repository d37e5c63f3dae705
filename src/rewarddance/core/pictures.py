"""What PIL opened, as an RGB picture. No torch here, so that the annotation desk starts fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


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
