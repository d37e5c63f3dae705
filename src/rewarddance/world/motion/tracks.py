"""Clips to tracks: the still world's detector on every frame, and its detections linked over time.

Knows pixels only, no scene and no prompt. Two objects of one colour are told apart by shape and by place.

Shapes: F frames, T tracks, K colours (`COLOURS`), S shapes (`SHAPES`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from rewarddance.world.detect import Detection, Seen, detect
from rewarddance.world.motion.render import Clip
from rewarddance.world.scene import CANVAS, COLOURS, SHAPES

Array = NDArray[np.float64]
REACH, COLOUR_COST, SHAPE_COST, LIMIT = 20.0, 2.6, 2.6, 3.15
"""Pixels that cost 1, cost of linking two detections of other colours and of other shapes, and the most that a link may
cost. So an object may change its colour or its shape where it stands, and an equal one may jump across the picture
(which `motion` punishes); another kind elsewhere is a new object."""
TRACKS = 8
"""Most tracks that are followed; the longest are kept."""
MAX_FRAMES = 81
"""Most frames of a clip that is judged."""


@dataclass(frozen=True)
class Track:
    """One object over time. Rows of absent frames hold the nearest present frame's values.

    Attributes:
        present: in which frames it was detected, bool (F,).
        centres: middle of its paint in pixels, (F, 2) as x, y; sizes: side in pixels, (F,).
        colours: share of its paint in every colour, (F, K); shapes, styles: overlap with every template.
        paint: mean RGB where it covers most of a pixel, 0..255, (F, 3).
    """

    present: NDArray[np.bool_]
    centres: Array
    sizes: Array
    colours: Array
    shapes: Array
    styles: Array
    paint: Array

    @property
    def share(self) -> float:
        """Share of the frames in which it is present."""
        return float(self.present.mean())

    @property
    def first(self) -> int:
        return int(self.present.argmax())

    @property
    def last(self) -> int:
        return len(self.present) - 1 - int(self.present[::-1].argmax())

    @property
    def name(self) -> str:
        """Colour and shape in words, for reasons."""
        colour, shape = self.colours[self.present].mean(0).argmax(), self.shapes[self.present].mean(0).argmax()
        return f"{COLOURS[int(colour)]} {SHAPES[int(shape)]}"


@dataclass(frozen=True)
class Watched:
    """Everything seen in a clip.

    Attributes:
        frames: what was detected in each frame.
        flicker: mean change of a background pixel from frame to frame, 0..255.
    """

    tracks: tuple[Track, ...]
    frames: tuple[Seen, ...]
    fps: float
    flicker: float

    @property
    def seconds(self) -> float:
        """From the first to the last frame."""
        return (len(self.frames) - 1) / self.fps


def _centre(cover: NDArray[np.float32], box: tuple[int, int, int, int]) -> tuple[float, float]:
    """Mean place of the paint in a box, x and y in pixels; finer than the box's own middle."""
    top, left, bottom, right = box
    inside = cover[top:bottom, left:right]
    across, down = inside.sum(0), inside.sum(1)
    total = max(float(across.sum()), 1e-6)
    x = float(across @ _TICKS[: len(across)]) / total
    y = float(down @ _TICKS[: len(down)]) / total
    return left + x, top + y


_TICKS = np.arange(CANVAS, dtype=np.float32) + 0.5


def _paint(image: NDArray[np.uint8], cover: NDArray[np.float32], box: tuple[int, int, int, int]) -> Array:
    top, left, bottom, right = box
    weight = cover[top:bottom, left:right] ** 2
    pixels = image[top:bottom, left:right].reshape(-1, 3)
    return np.asarray(weight.ravel() @ pixels / max(float(weight.sum()), 1e-6), np.float64)


def _costs(before: list[Detection], places: Array, now: list[Detection], centres: Array) -> Array:
    """Cost of taking a detection for the continuation of a track, (tracks, detections)."""
    distance = np.hypot(*(places[:, None] - centres[None]).transpose(2, 0, 1))
    old, new = np.stack([d.colour_share for d in before]), np.stack([d.colour_share for d in now])
    other = 1 - np.minimum(old[:, None], new[None]).sum(2)
    shapes = np.array([[a.shape != b.shape for b in now] for a in before])
    return np.asarray(distance / REACH + COLOUR_COST * other + SHAPE_COST * shapes, np.float64)


def _link(detections: list[list[Detection]], centres: list[Array]) -> list[dict[int, int]]:
    """Tracks as mappings from a frame to one of its detections."""
    links: list[dict[int, int]] = []
    for f, now in enumerate(detections):
        free = set(range(len(now)))
        if links and now:
            last = [max(link) for link in links]
            before = [detections[k][link[k]] for k, link in zip(last, links, strict=True)]
            places = np.stack([centres[k][link[k]] for k, link in zip(last, links, strict=True)])
            costs = _costs(before, places, now, centres[f])
            rows, columns = linear_sum_assignment(costs)
            for r, c in zip(rows.tolist(), columns.tolist(), strict=True):
                if costs[r, c] <= LIMIT:
                    links[r][f] = c
                    free.discard(c)
        links += [{f: c} for c in sorted(free)]
    return sorted(links, key=len, reverse=True)[:TRACKS]


def _flicker(clip: Clip, frames: list[Seen]) -> float:
    """Mean change from frame to frame of the pixels that no object comes near."""
    ground = np.stack([s.coverage for s in frames]).max(0) < 0.05
    if ground.mean() < 0.1:  # everything is painted, or noise
        ground[:] = True
    pixels = clip[:, ground].astype(np.int16)
    return float(abs(np.diff(pixels, axis=0)).mean())


def watch(clip: Clip, fps: float) -> Watched:
    """Find the objects of a clip and follow them.

    Args:
        clip: uint8 (F, CANVAS, CANVAS, 3), 2 to `MAX_FRAMES` frames of any content.
        fps: frames per second.

    Raises:
        ValueError: another shape or type, or a frame rate that is not positive.
    """
    if clip.ndim != 4 or not 2 <= len(clip) <= MAX_FRAMES:
        raise ValueError(f"needs a clip (F, {CANVAS}, {CANVAS}, 3) of 2 to {MAX_FRAMES} frames, got {clip.shape}")
    if not 0 < fps < float("inf"):
        raise ValueError(f"needs frames per second above 0, got {fps}")
    frames: list[Seen] = []
    for k, image in enumerate(clip):
        frames.append(frames[-1] if k and np.array_equal(image, clip[k - 1]) else detect(image))
    detections = [list(s.objects) for s in frames]
    centres = [np.array([_centre(s.coverage, d.box) for d in s.objects]).reshape(-1, 2) for s in frames]
    links = _link(detections, centres)
    tracks = tuple(_track(link, clip, frames, centres) for link in links)
    return Watched(tracks, tuple(frames), fps, _flicker(clip, frames))


def _track(link: dict[int, int], clip: Clip, frames: list[Seen], centres: list[Array]) -> Track:
    present = np.zeros(len(frames), np.bool_)
    known = sorted(link)
    present[known] = True
    middles = [(a + b) / 2 for a, b in zip(known, known[1:], strict=False)]
    nearest = np.searchsorted(np.array(middles), np.arange(len(frames)))  # of `known`, for every frame
    objects = [frames[f].objects[link[f]] for f in known]
    paints = [_paint(clip[f], frames[f].coverage, frames[f].objects[link[f]].box) for f in known]

    def spread(rows: list[NDArray[np.floating]] | list[Array]) -> Array:
        return np.asarray(np.stack(rows), np.float64)[nearest]

    return Track(
        present=present,
        centres=spread([centres[f][link[f]] for f in known]),
        sizes=np.array([d.size for d in objects])[nearest],
        colours=spread([d.colour_share for d in objects]),
        shapes=spread([d.shape_fit for d in objects]),
        styles=spread([d.style_fit for d in objects]),
        paint=spread(paints),
    )
