"""Scenes to pixels, with anti-aliasing. Each object is a cached sprite of coverages, blended onto the background."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarddance.world.scene import CANVAS, RGB, Scene, Shape, Style

Image = NDArray[np.uint8]
"""A picture: (CANVAS, CANVAS, 3), 0..255, RGB."""
Coverage = NDArray[np.float32]

_SUB = 8  # samples per pixel and axis
OUTLINE_WIDTH = 1.6
"""Width of the line in the outline style, pixels."""
STRIPE_PERIOD = 4
FAINT = 0.35
"""Coverage between stripes and dots. It is above 0, so that an object stays connected."""


def _distance(shape: Shape, u: NDArray[np.float64], v: NDArray[np.float64], half: float) -> Any:
    """Signed distance-like field in pixels, negative inside; (u, v) relative to the centre, v downward."""
    if shape == "circle":
        return np.hypot(u, v) - half
    if shape == "square":
        return np.maximum(abs(u), abs(v)) - half
    if shape == "diamond":
        return (abs(u) + abs(v) - half) / np.sqrt(2)
    if shape == "cross":
        arm = 0.42 * half
        upright = np.maximum(abs(u) - arm, abs(v) - half)
        level = np.maximum(abs(u) - half, abs(v) - arm)
        return np.minimum(upright, level)
    slope = np.hypot(2.0, 1.0)  # triangle: apex on top, base as wide as high
    return np.maximum(v - half, (2 * abs(u) - (v + half)) / slope)


def coverage(shape: Shape, size: float, style: Style, side: int, dx: float = 0.0, dy: float = 0.0) -> Coverage:
    """Coverage in [0, 1] of one object on a square of `side` pixels, (side, side).

    Args:
        size: the object's own side in pixels.
        dx, dy: how far right of and below the square's middle its centre is, in pixels.
    """
    ticks = (np.arange(side * _SUB) + 0.5) / _SUB - side / 2
    u, v = np.meshgrid(ticks - dx, ticks - dy)
    d = _distance(shape, u, v, size / 2)
    inside = (d <= 0).astype(np.float64)
    if style == "outline":
        inside *= d > -OUTLINE_WIDTH
    elif style == "striped":
        bands = np.floor((v + size / 2) / (STRIPE_PERIOD / 2)) % 2 == 0
        inside *= np.where(bands, 1.0, FAINT)
    elif style == "dotted":
        dots = np.hypot((u + size / 2) % 4 - 2, (v + size / 2) % 4 - 2) < 1.5
        inside *= np.where(dots, 1.0, FAINT)
    return np.asarray(inside.reshape(side, _SUB, side, _SUB).mean((1, 3)), np.float32)


@cache
def sprite(shape: Shape, size: int, style: Style) -> Coverage:
    """Coverage in [0, 1] of one object, (size + 2, size + 2), centred."""
    return coverage(shape, size, style, size + 2)


def _window(centre: int, side: int) -> tuple[slice, slice]:
    """The canvas rows (or columns) that a sprite covers, and the sprite's rows that lie on the canvas."""
    start = centre - side // 2
    low, high = max(start, 0), min(start + side, CANVAS)
    return slice(low, high), slice(low - start, high - start)


def render(scene: Scene) -> Image:
    """Draw a scene. Equal scenes give equal bytes.

    Returns:
        uint8, (CANVAS, CANVAS, 3).
    """
    canvas = np.empty((CANVAS, CANVAS, 3), np.float32)
    canvas[:] = RGB[scene.background]
    for o in scene.objects:
        cover = sprite(o.shape, o.size, scene.style)
        rows, from_rows = _window(o.y, cover.shape[0])
        columns, from_columns = _window(o.x, cover.shape[1])
        alpha = cover[from_rows, from_columns, None]
        canvas[rows, columns] += alpha * (np.asarray(RGB[o.colour], np.float32) - canvas[rows, columns])
    return (canvas + 0.5).astype(np.uint8)
