"""The clips that people see. The clips of an item are encoded again and made equal in everything but their pixels."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewarddance.apps.annotate.media import SMALL, fitted
from rewarddance.core.clips import Codec, encode_clip, encode_frames, is_container, read_clip, read_gif
from rewarddance.core.errors import InputError
from rewarddance.core.pictures import open_image
from rewarddance.core.streams import stream

LARGEST = 1280
"""Longest side in pixels that is sent; larger clips are made smaller."""
FASTEST = 60
"""Frames per second that are sent at most."""
BLOCKS = 32
"""Blocks along the longest side of a clip of an attention check. They are put into random places."""
_ENCODERS = threading.BoundedSemaphore(2)


@dataclass(frozen=True)
class Shape:
    """Size in pixels, number of frames, and frames per second of a clip."""

    height: int
    width: int
    num_frames: int
    fps: float

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps


def open_clip(content: bytes, origin: str) -> tuple[NDArray[np.uint8], float]:
    """Decode MP4, WebM or GIF.

    Returns:
        uint8 (F, H, W, 3), and frames per second.

    Raises:
        InputError: not a clip, damaged, or over a limit of `core.clips`.
    """
    if is_container(content[:12]):
        return read_clip(io.BytesIO(content), origin)
    try:
        with open_image(io.BytesIO(content), ("GIF",)) as image:
            return read_gif(image, origin)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{origin}: not a clip (MP4, WebM or GIF), or damaged ({error})") from None


def shape_of(content: bytes, origin: str) -> Shape:
    """The shape of a clip, which is decoded to the end, so that damage is seen.

    Raises:
        InputError: as `open_clip`.
    """
    pixels, fps = open_clip(content, origin)
    return Shape(pixels.shape[1], pixels.shape[2], pixels.shape[0], fps)


def common_shape(shapes: Sequence[Shape]) -> Shape:
    """The shape that all clips of an item get: the largest height and width, made even, and the longest duration.

    The rate is that of the clips where they have one. Otherwise it is the smallest rate that is a multiple of all, or
    `FASTEST`.
    """
    height, width = max(s.height for s in shapes), max(s.width for s in shapes)
    scale = _scale(max(height, width))
    height, width = (2 * math.ceil(side * scale / 2) for side in (height, width))
    rates = {Fraction(s.fps).limit_denominator(1001) for s in shapes}
    fps = shapes[0].fps if len(rates) == 1 else float(_multiple(rates))
    fps = min(fps, FASTEST)
    return Shape(height, width, max(1, round(max(s.seconds for s in shapes) * fps)), fps)


def _multiple(rates: Collection[Fraction]) -> Fraction:
    """The smallest rate that is a multiple of all rates."""
    below = math.lcm(*(r.denominator for r in rates))
    return Fraction(math.lcm(*(int(r * below) for r in rates)), below)


def _scale(longest: int) -> float:
    if longest < SMALL:  # enlarged, because the format yuv420p stores one colour for four pixels
        return math.ceil(SMALL / longest)
    return min(1.0, LARGEST / longest)


PADDED_TO = 1 << 16
"""Clips are filled up to a multiple of this many bytes, so that a clip that is judged alone has a common size too."""


def equal_clips(files: Sequence[bytes], shapes: Sequence[Shape]) -> list[bytes]:
    """Clips as MP4 (H.264) with pixels alone, in `common_shape(shapes)`, and with equally many bytes.

    A smaller clip is enlarged to the common size, with black bars where its aspect ratio differs. A slower clip repeats
    frames, and a shorter one holds its last frame.
    """
    shape = common_shape(shapes)
    with _ENCODERS:
        encoded = [_encoded(*open_clip(content, "clip"), shape) for content in files]
    length = PADDED_TO * -(-(max(map(len, encoded)) + 8) // PADDED_TO)
    return [content + _free(length - len(content)) for content in encoded]


def _free(length: int) -> bytes:
    """A box of an MP4 file that players pass over."""
    return length.to_bytes(4, "big") + b"free" + bytes(length - 8)


def _fitted_frames(pixels: NDArray[np.uint8], fps: float, shape: Shape) -> Iterator[NDArray[np.uint8]]:
    last, frame = -1, pixels[0]
    for k in range(shape.num_frames):
        index = min(len(pixels) - 1, math.floor(k / shape.fps * fps + 1e-6))
        if index != last:
            last, frame = index, fitted(pixels[index], shape.height, shape.width)
        yield frame


def _encoded(pixels: NDArray[np.uint8], fps: float, shape: Shape) -> bytes:
    """The clip as MP4. `bitexact` leaves the program's name out, and one thread gives the same bytes everywhere."""
    options = {"crf": "12", "preset": "veryfast", "bf": "0", "g": str(max(1, round(shape.fps / 2))), "threads": "1"}
    codec = Codec("mp4", "libx264", "yuv420p", options, {"fflags": "+bitexact"}, bt709=True)
    return encode_frames(_fitted_frames(pixels, fps, shape), (shape.height, shape.width), shape.fps, codec, "clip")


def shuffled_clip(content: bytes, seed: int, origin: str) -> bytes:
    """A clip of the same shape whose blocks lie in random places, the same ones in all frames, as MP4.

    Parts of frames beyond the last whole block stay.
    """
    pixels, fps = open_clip(content, origin)
    num, height, width, _ = pixels.shape
    side = max(1, max(height, width) // BLOCKS)
    rows, columns = height // side, width // side
    grid = pixels[:, : rows * side, : columns * side].reshape(num, rows, side, columns, side, 3).swapaxes(2, 3)
    blocks = grid.reshape(num, rows * columns, side, side, 3)
    moved = blocks[:, stream(seed, "noise", height).permutation(rows * columns)]
    shuffled = pixels.copy()
    moved = moved.reshape(num, rows, columns, side, side, 3).swapaxes(2, 3)
    shuffled[:, : rows * side, : columns * side] = moved.reshape(num, rows * side, columns * side, 3)
    return encode_clip(shuffled, fps, Path(f"{origin}.mp4"))
