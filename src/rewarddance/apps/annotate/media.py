"""The pictures that people see: encoded again as PNG, without metadata. Also makes the noise for checks.

`clips.py` does the same for clips. What a server encoded is remembered, and sent whole or in parts.
"""

from __future__ import annotations

import io
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from rewarddance.core.pictures import as_rgb, upright
from rewarddance.core.streams import stream

KEPT_PICTURES = 64
"""Encoded pictures that a server keeps in memory."""
KEPT_CLIPS = 16
"""Items whose encoded clips a server keeps in memory."""
T = TypeVar("T")
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


class Remembered(Generic[T]):
    """The latest `most` values by key. Threads share it, and each value is made once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[str, Future[T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """The value of this key, from `make` where it is not remembered."""
        with self._lock:
            future = self._kept.get(key)
            new = future is None
            if future is None:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        if new:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)
                future.set_exception(error)
        return future.result()


@dataclass(frozen=True)
class Part:
    """A response to a request for a file: status, bytes, and headers."""

    status: int
    content: bytes
    headers: dict[str, str]


_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def part_of(content: bytes, wanted: str | None) -> Part:
    """The bytes that a `Range` header asks for, as RFC 9110 says. Browsers need this to move within a clip.

    The whole file where there is no header, or one of another unit or with several ranges.
    """
    whole = Part(200, content, {"Accept-Ranges": "bytes"})
    match = _RANGE.fullmatch((wanted or "").strip())
    if match is None or match.group() == "bytes=-":
        return whole
    first, last = match.groups()
    length = len(content)
    begin = int(first) if first else max(0, length - int(last))
    end = min(length - 1, int(last)) if first and last else length - 1
    if first and last and int(last) < int(first):
        return whole
    if begin >= length or (not first and int(last) == 0):
        return Part(416, b"", {"Content-Range": f"bytes */{length}", **whole.headers})
    return Part(206, content[begin : end + 1], {"Content-Range": f"bytes {begin}-{end}/{length}", **whole.headers})


def noise_of(content: bytes, seed: int) -> bytes:
    """A picture of the same size and the same colours, with all pixels in random places."""
    pixels = np.asarray(_pixels(content))
    order = stream(seed, "noise", pixels.shape[0]).permutation(pixels.shape[0] * pixels.shape[1])
    return _png(Image.fromarray(pixels.reshape(-1, 3)[order].reshape(pixels.shape)))
