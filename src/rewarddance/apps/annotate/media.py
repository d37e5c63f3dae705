"""The pictures that people see: encoded again as PNG, without metadata. Also makes the noise for checks."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from PIL import Image

from rewarddance.core.pictures import as_rgb, upright
from rewarddance.core.streams import stream

KEPT = 64
"""Encoded pictures that a server keeps in memory."""
LARGEST = 2048
"""Longest side in pixels that is sent; larger pictures are made smaller, by area."""


def _pixels(content: bytes) -> Image.Image:
    """The picture as RGB: upright, transparency on white, at most `LARGEST` pixels a side."""
    with Image.open(io.BytesIO(content)) as opened:
        image = as_rgb(upright(opened))
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return image


def _png(image: Image.Image) -> bytes:
    clean = Image.frombytes("RGB", image.size, image.tobytes())  # a new image has no profile, text or EXIF
    buffer = io.BytesIO()
    clean.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def blinded(content: bytes) -> bytes:
    """A picture file as PNG with pixels alone: nothing says which program, model or prompt made it."""
    return _png(_pixels(content))


class Blinded:
    """`blinded` pictures by the hash of their files; the latest `KEPT` are remembered. Threads share it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, sha256: str, load: Callable[[], bytes]) -> bytes:
        """The picture with this hash. `load` gives its file where it is not remembered."""
        with self._lock:
            if sha256 in self._kept:
                self._kept.move_to_end(sha256)
                return self._kept[sha256]
        png = blinded(load())
        with self._lock:
            self._kept[sha256] = png
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return png


def noise_of(content: bytes, seed: int) -> bytes:
    """A picture of the same size and the same colours, with all pixels in random places."""
    pixels = np.asarray(_pixels(content))
    order = stream(seed, "noise", pixels.shape[0]).permutation(pixels.shape[0] * pixels.shape[1])
    return _png(Image.fromarray(pixels.reshape(-1, 3)[order].reshape(pixels.shape)))
