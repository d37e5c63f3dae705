"""The pictures that people see: encoded again as PNG, without metadata. Also makes the noise for checks.

`clips.py` does the same for clips. What a server encoded is remembered, and sent whole or in parts.
"""

from __future__ import annotations

import io
import math
import re
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewarddance.core.pictures import as_rgb, open_image, upright
from rewarddance.core.streams import stream

KEPT = 256 << 20
"""Bytes of encoded pictures and clips that a server keeps in memory."""
Pixels = NDArray[np.uint8]
LARGEST = 2048
"""Longest side in pixels that is sent; larger pictures are made smaller, by area."""


SMALL = 256
"""A picture with sides below this is enlarged without smoothing where the factor is whole."""
_ORIENTATION = 0x0112
PADDED_TO = 1 << 14
"""Files of pictures are filled up to a multiple of this many bytes."""


def _pixels(content: bytes) -> Image.Image:
    """The picture as RGB: upright, transparency on white, at most `LARGEST` pixels a side."""
    with open_image(io.BytesIO(content)) as opened:
        image = as_rgb(upright(opened))
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return image


def size_of(content: bytes) -> tuple[int, int]:
    """Width and height of an upright picture, from the beginning of its file.

    Raises:
        one of `core.pictures.unreadable`: not a picture.
    """
    with open_image(io.BytesIO(content)) as opened:
        width, height = opened.size
        lies = opened.getexif().get(_ORIENTATION, 1) >= 5
    return (height, width) if lies else (width, height)


def _png(image: Image.Image) -> bytes:
    clean = Image.frombytes("RGB", image.size, image.tobytes())  # a new image has no profile, text or EXIF
    buffer = io.BytesIO()
    clean.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def equal_pictures(files: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """PNG files without metadata, in the largest width and height of `sizes`, all with the same number of bytes.

    So neither metadata nor size shows which system made a picture. A smaller picture is enlarged. It gets black bars
    if its aspect ratio differs.
    """
    widths, heights = zip(*sizes, strict=True)
    scale = min(1.0, LARGEST / max(*widths, *heights))
    width, height = round(scale * max(widths)), round(scale * max(heights))
    encoded = []
    for content in files:
        pixels = np.asarray(_pixels(content))
        encoded.append(_png(Image.fromarray(fitted(pixels, height, width))))
    length = PADDED_TO * -(-(max(map(len, encoded)) + 12) // PADDED_TO)
    return [_padded(content, length) for content in encoded]


def _padded(png: bytes, length: int) -> bytes:
    """The file with a private chunk of zeros before its end. Readers skip this chunk."""
    body = b"paDd" + bytes(length - len(png) - 12)
    end = len(png) - 12  # the chunk IEND
    return b"".join(
        [png[:end], (len(body) - 4).to_bytes(4, "big"), body, zlib.crc32(body).to_bytes(4, "big"), png[end:]]
    )


def fitted(pixels: Pixels, height: int, width: int) -> Pixels:
    """A picture (H, W, 3) in another size, centred, with black bars if its aspect ratio differs."""
    own = pixels.shape[:2]
    scale = min(height / own[0], width / own[1])
    whole = math.floor(scale + 1e-9)
    if whole and (scale - whole) * max(own) < 2:  # sides of clips are rounded to even numbers; do not resample for that
        scale = whole
    size = max(1, round(own[1] * scale)), max(1, round(own[0] * scale))
    if size != (own[1], own[0]):
        small = scale == whole and max(own) < SMALL
        how = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
        pixels = np.asarray(Image.fromarray(pixels).resize(size, how))
    canvas: Pixels = np.zeros((height, width, 3), np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = pixels
    return canvas


class Remembered:
    """Cache of the encoded files of the latest items, at most `most` bytes. Threads encode each item only once."""

    def __init__(self, most: int = KEPT) -> None:
        self.most = most
        self._kept: OrderedDict[str, Future[list[bytes]]] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str, encode: Callable[[], list[bytes]]) -> list[bytes]:
        """The files of this item, from the cache or from `encode`."""
        with self._lock:
            future = self._kept.get(key)
            new = future is None
            if future is None:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
        if new:
            try:
                files = encode()
            except BaseException as error:
                with self._lock:
                    del self._kept[key]
                future.set_exception(error)
            else:
                self._remember(key, files)
                future.set_result(files)
        return future.result()

    def _remember(self, key: str, files: list[bytes]) -> None:
        """Count the files, and forget the items that were asked for longest ago. Items that are being encoded stay."""
        with self._lock:
            self._sizes[key] = sum(map(len, files))
            self._bytes += self._sizes[key]
            while self._bytes > self.most:
                oldest = next((name for name in self._kept if name in self._sizes and name != key), None)
                if oldest is None:
                    return
                del self._kept[oldest]
                self._bytes -= self._sizes.pop(oldest)


@dataclass(frozen=True)
class Part:
    """A response to a request for a file: status, bytes, and headers."""

    status: int
    content: bytes
    headers: dict[str, str]


_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def part_of(content: bytes, byte_range: str | None) -> Part:
    """The bytes that a `Range` header asks for, as RFC 9110 says. Browsers need this to move within a clip.

    The whole file where there is no header, or one of another unit or with several ranges.
    """
    whole = Part(200, content, {"Accept-Ranges": "bytes"})
    match = _RANGE.fullmatch((byte_range or "").strip())
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
