"""Pixels to objects: background, coverage by colour, connected pieces, shape and style by template.

Classical image analysis of 48x48 pictures, under a millisecond, for any uint8 array. It uses the world's palette and
sprites, but no scene graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rewarddance.world.render import Image, sprite
from rewarddance.world.scene import BACKGROUNDS, CANVAS, COLOURS, REGULAR_SIZES, RGB, SHAPES, SIZE_LINE, STYLES

Array = NDArray[np.float32]
MIN_AREA = 24
"""Pixels; smaller pieces are specks, not objects."""
_TWINS = 22
"""Side in pixels beyond which a piece may be several objects of one colour that touch."""
_WINDOW = 30
"""Side in pixels of the largest square on which templates and cut-outs are compared."""
_PALETTE = np.array([RGB[c] for c in COLOURS], np.float32)
_CROSS = ndimage.generate_binary_structure(2, 1)  # neighbours share a side
_GROUNDS = np.array([RGB[b] for b in BACKGROUNDS], np.float32)


@dataclass(frozen=True)
class Detection:
    """One object found in a picture.

    Attributes:
        colour, shape, style: names of the best fits.
        colour_share: share of the object's coverage in every colour of `COLOURS`, sums to 1.
        shape_fit: overlap (intersection over union) of the silhouette with every shape of `SHAPES`.
        style_fit: overlap of the coverage with every style of `STYLES`, given the best shape.
        x, y: centre of the bounding box; box: (top, left, bottom, right), half open, pixels.
        size: longer side of the box; area: pixels of the filled silhouette.
    """

    colour: str
    shape: str
    style: str
    colour_share: Array
    shape_fit: Array
    style_fit: Array
    x: float
    y: float
    size: float
    area: int
    box: tuple[int, int, int, int]

    @property
    def large(self) -> bool:
        return self.size > SIZE_LINE


@dataclass(frozen=True)
class Seen:
    """All detections in a picture.

    Attributes:
        background: name of the nearest background; background_distance: distance of the border's median colour from it
            in RGB units (0..441).
        specks: pixels of foreground that belong to no object.
        coverage: foreground coverage in [0, 1], (CANVAS, CANVAS).
    """

    objects: tuple[Detection, ...]
    background: str
    background_distance: float
    specks: int
    coverage: Array


@cache
def _templates(size: int, side: int) -> tuple[Array, Array, Array, Array]:
    """Silhouettes (shapes, side^2) and styles (shapes, styles, side^2) of one size, centred, and their |b|^2."""
    silhouettes = np.zeros((len(SHAPES), side, side), np.float32)
    styles = np.zeros((len(SHAPES), len(STYLES), side, side), np.float32)
    start = (side - (size + 2)) // 2
    where = slice(start, start + size + 2)
    for i, shape in enumerate(SHAPES):
        silhouettes[i, where, where] = sprite(shape, size, "flat")
        for j, style in enumerate(STYLES):
            styles[i, j, where, where] = sprite(shape, size, style)
    flat, drawn = silhouettes.reshape(len(SHAPES), -1), styles.reshape(len(SHAPES), len(STYLES), -1)
    return flat, drawn, (flat**2).sum(-1), (drawn**2).sum(-1)


@cache
def _silhouettes(size: int) -> tuple[Array, Array]:
    """Silhouettes of three neighbouring sizes, (3 * shapes, side^2), and their |b|^2."""
    templates = [_templates(_template_size(n), _window(size)) for n in (size - 1, size, size + 1)]
    return np.concatenate([t[0] for t in templates]), np.concatenate([t[2] for t in templates])


def _template_size(size: int) -> int:
    return min(max(size, 5), _WINDOW - 3)


def _window(size: int) -> int:
    """Side of the square for an object of `size` pixels and its templates, shifted by up to a pixel; it is even."""
    return min(max(size + 4 + size % 2, 10), _WINDOW)


def _border_colour(image: Array) -> Array:
    """Median of the two outer rows and columns, (3,)."""
    sides = (image[:, :2], image[:, -2:], image[:, :, :2], image[:, :, -2:])
    edge = np.concatenate([side.reshape(3, -1) for side in sides], 1)
    half = edge.shape[1] // 2
    middle = np.partition(edge, (half - 1, half))[:, half - 1 : half + 1]  # without np.median's overhead
    return np.asarray(middle.mean(1), np.float32)


def _unmix(image: Array, ground: Array) -> tuple[NDArray[np.intp], Array]:
    """Index of the best colour and its coverage at every pixel, from `pixel = ground + coverage * (paint - ground)`.

    Pixels of the background have coverage 0 and colour 0.
    """
    rise = image.reshape(3, -1) - ground[:, None]
    square = np.einsum("cp,cp->p", rise, rise)
    (painted,) = np.nonzero(square >= 18.0**2)  # other pixels are too near the background
    paint = _PALETTE - ground
    length = np.maximum((paint**2).sum(1), 1.0)[:, None]
    along = paint @ rise[:, painted]  # (colours, painted)
    cover = (along / length).clip(0, 1)
    error = cover * (cover * length - 2 * along)  # squared error minus `square`, which is the same for all colours
    best = error.argmin(0)
    colours, coverage = np.zeros(CANVAS * CANVAS, np.intp), np.zeros(CANVAS * CANVAS, np.float32)
    colours[painted], coverage[painted] = best, cover[best, np.arange(len(best))]
    return colours.reshape(CANVAS, CANVAS), coverage.reshape(CANVAS, CANVAS)


def _pieces(mask: NDArray[np.bool_], best: NDArray[np.intp], cover: Array) -> tuple[list[NDArray[np.bool_]], int]:
    """Connected foreground pieces, split where two colours each fill a good part of one."""
    labels, count = ndimage.label(mask, _CROSS)
    pieces: list[NDArray[np.bool_]] = []
    specks = 0
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    for n in range(1, count + 1):
        if areas[n] < 6:
            specks += int(areas[n])
            continue
        piece = labels == n
        share = np.bincount(best[piece], cover[piece], len(COLOURS))
        parts = np.flatnonzero(share > max(20.0, 0.2 * share.sum()))
        candidates = [piece] if len(parts) < 2 else [piece & (best == c) for c in parts]
        for part in candidates:
            if len(parts) >= 2:
                inner, many = ndimage.label(part, _CROSS)
                part = inner == 1 + np.bincount(inner.ravel())[1:].argmax() if many else part
            area = int(np.count_nonzero(part))
            if area >= MIN_AREA or np.count_nonzero(_filled(_cropped(part))[1:-1, 1:-1]) >= MIN_AREA:
                pieces.append(part)
            else:
                specks += area
    return pieces, specks


def _cropped(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask's bounding box; it has at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with its holes filled, inside a frame of one empty pixel."""
    framed = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.bool_)
    framed[1:-1, 1:-1] = mask
    outside, _ = ndimage.label(~framed, _CROSS)
    return np.asarray(outside != outside[0, 0])


def _overlap(cuts: Array, templates: Array, squares: Array) -> Array:
    """Tanimoto similarity a.b / (|a|^2 + |b|^2 - a.b), intersection over union where both are binary.

    Args:
        cuts: (shifts, side^2); templates: (n, side^2); squares: |b|^2 of each template, (n,).

    Returns:
        (n,), the best over the shifts.
    """
    dot = cuts @ templates.T
    union = np.einsum("sw,sw->s", cuts, cuts)[:, None] + squares - dot
    return np.asarray((dot / np.maximum(union, 1e-6)).max(0), np.float32)


def _cuts(inside: Array, side: int) -> Array:
    """The object's box in the middle of a window and shifted by a pixel, (9, side^2). Larger boxes are cropped."""
    near = np.zeros((side + 2, side + 2), np.float32)
    height, width = inside.shape
    y, x = 1 - (height - side) // 2, 1 - (width - side) // 2
    fits = inside[max(-y, 0) : side + 2 - y, max(-x, 0) : side + 2 - x]
    near[max(y, 0) : max(y, 0) + fits.shape[0], max(x, 0) : max(x, 0) + fits.shape[1]] = fits
    windows = np.ndarray((3, 3, side, side), np.float32, near, 0, near.strides * 2)  # views, each shifted by a pixel
    return windows.reshape(9, side * side)


def _measure(piece: NDArray[np.bool_], best: NDArray[np.intp], cover: Array) -> Detection:
    rows, columns = np.flatnonzero(piece.any(1)), np.flatnonzero(piece.any(0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    box = slice(top, bottom), slice(left, right)
    piece, best, cover = piece[box], best[box], cover[box]
    framed = _filled(piece)
    filled = framed[1:-1, 1:-1]
    size = max(bottom - top, right - left)
    soft = filled.astype(np.float32)
    # Pixels at the edge keep their partial coverage. Pixels inside count as covered in every style.
    edge = filled & ~(framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:])
    soft[edge] = np.maximum(cover[edge], 0.35)
    side = _window(size)
    fits = _overlap(_cuts(soft, side), *_silhouettes(size)).reshape(3, -1)
    shape_fit = fits.max(0)
    best_shape = int(shape_fit.argmax())
    fitted = _template_size(size - 1 + int(fits[:, best_shape].argmax()))
    _, drawn, _, squares = _templates(fitted, side)
    style_fit = _overlap(_cuts(np.where(piece, cover, 0), side), drawn[best_shape], squares[best_shape])
    share = np.bincount(best[piece], cover[piece] ** 2, len(COLOURS)).astype(np.float32)
    share /= max(float(share.sum()), 1e-6)
    return Detection(
        colour=COLOURS[int(share.argmax())],
        shape=SHAPES[best_shape],
        style=STYLES[int(style_fit.argmax())],
        colour_share=share,
        shape_fit=shape_fit,
        style_fit=style_fit,
        x=(left + right) / 2,
        y=(top + bottom) / 2,
        size=float(fitted),
        area=int(np.count_nonzero(filled)),
        box=(top, left, bottom, right),
    )


def _separate(piece: NDArray[np.bool_], best: NDArray[np.intp], cover: Array) -> list[Detection]:
    """The objects of a connected piece. Two objects of one colour that touch are cut apart.

    A piece longer than any object is cut across its longer side where it is thinnest. The cut is kept if both parts fit
    shapes better than the whole.
    """
    whole = _measure(piece, best, cover)
    top, left, bottom, right = whole.box
    tall = bottom - top >= right - left
    length = max(bottom - top, right - left)
    if length <= _TWINS:
        return [whole]
    profile = np.where(piece, cover, 0).sum(1 if tall else 0)[top if tall else left :][:length]
    least = REGULAR_SIZES[0] - 4
    places = np.arange(least, length - least + 1)
    edge = profile[places - 1] + profile[places]  # coverage of the rows on both sides of a cut
    cut = int(places[np.lexsort((np.abs(places - length / 2), edge.round(1)))[0]]) + (top if tall else left)
    first, second = piece.copy(), piece.copy()
    if tall:
        first[cut:], second[:cut] = False, False
    else:
        first[:, cut:], second[:, :cut] = False, False
    if min(first.sum(), second.sum()) < MIN_AREA:
        return [whole]
    halves = [d for part in (first, second) for d in _separate(part, best, cover)]
    better = min(float(d.shape_fit.max()) for d in halves) > float(whole.shape_fit.max())
    return halves if better else [whole]


def detect(image: Image) -> Seen:
    """Find the objects in a picture.

    Args:
        image: uint8 (CANVAS, CANVAS, 3); any content.
    """
    if image.shape != (CANVAS, CANVAS, 3) or image.dtype != np.uint8:
        raise ValueError(f"needs uint8 ({CANVAS}, {CANVAS}, 3), got {image.dtype} {image.shape}")
    x = image.transpose(2, 0, 1).astype(
        np.float32, order="C"
    )  # colours first, so that the operations below read memory in order
    ground = _border_colour(x)
    distance = np.sqrt(((_GROUNDS - ground) ** 2).sum(1))
    best, cover = _unmix(x, ground)
    pieces, specks = _pieces(cover > 0.2, best, cover)
    objects = tuple(d for p in pieces[:12] for d in _separate(p, best, cover))
    nearest = int(distance.argmin())
    return Seen(objects, BACKGROUNDS[nearest], float(distance[nearest]), specks, cover)
