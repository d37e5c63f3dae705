"""Clips from scenes, with anti-aliasing: objects move by quarters of a pixel and grow by halves."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rewarddance.world.motion.scene import MotionScene, Pose
from rewarddance.world.render import Coverage, coverage
from rewarddance.world.scene import CANVAS, RGB, Shape, Style

Clip = NDArray[np.uint8]
"""A clip: (F, CANVAS, CANVAS, 3), 0..255, RGB."""


@lru_cache(1 << 15)
def _sprite(shape: Shape, halves: int, style: Style, across: int, down: int) -> Coverage:
    """An object of `halves` half pixels, shifted by quarters of a pixel, on a square that holds it."""
    side = math.ceil(halves / 2) + 3
    return coverage(shape, halves / 2, style, side, across / 4, down / 4)


def _draw(canvas: NDArray[np.float32], pose: Pose, shape: Shape, style: Style) -> None:
    halves = round(2 * pose.size)
    side = math.ceil(halves / 2) + 3
    left, across = divmod(round(4 * pose.x) - 2 * side, 4)  # the square's corner in pixels, and what remains
    top, down = divmod(round(4 * pose.y) - 2 * side, 4)
    cover = _sprite(shape, halves, style, across, down)
    rows, columns = slice(max(top, 0), min(top + side, CANVAS)), slice(max(left, 0), min(left + side, CANVAS))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    alpha = cover[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left, None]
    canvas[rows, columns] += alpha * (np.asarray(RGB[pose.colour], np.float32) - canvas[rows, columns])


def render(scene: MotionScene) -> Clip:
    """Draw a scene. The same scene gives the same bytes.

    Returns:
        uint8, (F, CANVAS, CANVAS, 3).
    """
    frames = np.empty((scene.num_frames, CANVAS, CANVAS, 3), np.float32)
    frames[:] = RGB[scene.background]
    for actor in (*scene.actors, *scene.ghosts):
        for canvas, pose in zip(frames, actor.poses, strict=True):
            if pose.visible:
                _draw(canvas, pose, actor.shape, scene.style)
    return (frames + 0.5).astype(np.uint8)
