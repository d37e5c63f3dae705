"""People at the desk see the pixels that a judge sees: one conversion to RGB for both."""

import io

import numpy as np
import pytest
from PIL import Image

from rewarddance.apps.annotate.media import equal_pictures, size_of
from rewarddance.core.media import Media
from rewarddance.core.pictures import as_rgb


def new_image(mode):
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 1 << 16, (8, 6), dtype=np.uint16))
    return Image.fromarray(rng.integers(0, 256, (8, 6, 4), dtype=np.uint8), "RGBA").convert(mode)


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "I;16"])
@pytest.mark.parametrize("turn", [1, 6])
def test_the_desk_shows_what_media_reads(mode, turn):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[274] = turn
    new_image(mode).save(buffer, "PNG", exif=exif)
    shown = Image.open(io.BytesIO(equal_pictures([buffer.getvalue()], [size_of(buffer.getvalue())])[0]))
    read = Media.open(io.BytesIO(buffer.getvalue())).to_pil()
    assert shown.size == read.size == ((8, 6) if turn == 6 else (6, 8))
    difference = np.asarray(shown, int) - np.asarray(read, int)
    assert np.abs(difference).max() <= (1 if mode == "I;16" else 0)


def test_transparency_is_laid_on_white_and_16_bits_are_scaled():
    clear = Image.new("RGBA", (1, 1), (10, 20, 30, 0))
    assert as_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.fromarray(np.full((1, 1), 65535 // 2, np.uint16))
    assert as_rgb(grey).getpixel((0, 0)) == (127, 127, 127)
