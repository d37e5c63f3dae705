"""Random specifications, and random scenes that fulfil one."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from rewarddance.world.scene import (
    ARRANGEMENT_COUNT,
    ARRANGEMENTS,
    BACKGROUNDS,
    CANVAS,
    CATEGORIES,
    COLOURS,
    LARGE_SIZES,
    REGULAR_SIZES,
    RELATIONS,
    SHAPES,
    STYLES,
    Category,
    Placed,
    Relation,
    Scene,
    Spec,
    Style,
    Term,
    along,
    gap,
)
from rewarddance.world.splits import OOD_STYLE, Split, scene_is_trainable, split_of

T = TypeVar("T")

TRAIN_STYLES: tuple[Style, ...] = tuple(s for s in STYLES if s != OOD_STYLE)
CATEGORY_WEIGHTS: dict[Category, float] = {
    "object": 0.3,
    "attribute": 0.15,
    "count": 0.2,
    "relation": 0.2,
    "concept": 0.15,
}
_CELLS = tuple((x, y) for y in (9, 24, 39) for x in (9, 24, 39))
MIN_GAP = 2
"""Least distance in pixels between the bounding squares of two objects."""
_MARGIN = 1  # least distance in pixels to the picture's border


def _pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]


def _kind(rng: np.random.Generator, count: int = 1, large: bool = False) -> Term:
    return Term(_pick(rng, COLOURS), _pick(rng, SHAPES), count, large)


def _terms(rng: np.random.Generator, category: Category) -> tuple[Term, ...]:
    if category == "object":
        return tuple(_kind(rng) for _ in range(int(rng.choice([1, 2, 3], p=[0.3, 0.45, 0.25]))))
    if category == "attribute":
        return (_kind(rng, large=True), *(_kind(rng) for _ in range(int(rng.integers(2)))))
    if category == "count":
        counts = _pick(rng, ((2,), (3,), (2, 1), (1, 2)))
        return tuple(_kind(rng, c) for c in counts)
    return (_kind(rng), _kind(rng))


def sample_spec(rng: np.random.Generator, category: Category | None = None, split: Split = "train") -> Spec:
    """A random specification of the given category and split.

    Args:
        category: drawn by `CATEGORY_WEIGHTS` when None.
        split: the split of the specification.

    Raises:
        RuntimeError: no such specification in 10,000 draws (the category contradicts the split).
    """
    styles = STYLES if split == "ood" else TRAIN_STYLES
    for _ in range(10_000):
        kind = category or CATEGORIES[int(rng.choice(len(CATEGORIES), p=list(CATEGORY_WEIGHTS.values())))]
        arrangement = _pick(rng, ARRANGEMENTS) if kind == "concept" else None
        relation: Relation | None = _pick(rng, RELATIONS) if kind == "relation" else None
        terms = (_kind(rng, ARRANGEMENT_COUNT[arrangement]),) if arrangement else _terms(rng, kind)
        if kind == "count" and split == "ood" and rng.random() < 0.4:
            terms = (_kind(rng, 4),)
        kinds = [(t.colour, t.shape, t.large) for t in terms]
        if len(set(kinds)) < len(kinds):
            continue
        spec = Spec(terms, _pick(rng, styles), _pick(rng, BACKGROUNDS), relation, arrangement)
        if split_of(spec) == split:
            return spec
    raise RuntimeError(f"no specification of category {category or 'any'} and split {split!r} in 10,000 draws")


def _centres(rng: np.random.Generator, spec: Spec) -> list[tuple[int, int]] | None:
    """One grid cell for every object, in the order of `spec.instances()`; None if this draw fails."""
    order = [_CELLS[i] for i in rng.permutation(9)]
    if spec.arrangement == "row":
        y = _CELLS[3 * int(rng.integers(3))][1]
        return [(x, y) for x in (9, 24, 39)]
    if spec.arrangement == "stack":
        x = _CELLS[int(rng.integers(3))][0]
        return [(x, y) for y in (9, 24, 39)]
    if spec.arrangement == "pair":
        (x, y), (x2, y2) = order[:2]
        return order[:2] if y == y2 and abs(x - x2) == 15 else None
    centres = order[: spec.num_objects]
    if spec.relation is not None:
        (x, y), (x2, y2) = centres
        return centres if along(spec.relation, x2 - x, y2 - y) > 0 else None
    return centres


def _is_line(centres: list[tuple[int, int]]) -> bool:
    """Do the centres form a row or a stack of three?"""
    return len(centres) == 3 and 1 in (len(set(values)) for values in zip(*centres, strict=True))


def place(spec: Spec, rng: np.random.Generator) -> Scene:
    """A random scene that fulfils the specification. Objects do not touch each other or the border.

    Raises:
        RuntimeError: no placement in 2,000 draws (the objects do not fit on the canvas).
    """
    for _ in range(2_000):
        centres = _centres(rng, spec)
        if centres is None:
            continue
        plain_count = spec.arrangement is None and spec.category == "count" and len(spec.terms) == 1
        if plain_count and _is_line(centres):
            continue  # "three circles" in a line would be called a row
        shared = tuple(int(v) for v in rng.integers(-1, 2, 2))  # all objects of an arrangement move together
        objects = []
        for term, (x, y) in zip(spec.instances(), centres, strict=True):
            size = _pick(rng, LARGE_SIZES if term.large else REGULAR_SIZES)
            dx, dy = shared if spec.arrangement in ("row", "stack") else rng.integers(-1, 2, 2)
            least, most = (size + 1) // 2 + _MARGIN, CANVAS - (size + 1) // 2 - _MARGIN
            px, py = int(np.clip(x + dx, least, most)), int(np.clip(y + dy, least, most))
            objects.append(Placed(term.colour, term.shape, size, px, py))
        if all(gap(a, b) >= MIN_GAP for i, a in enumerate(objects) for b in objects[:i]):
            return Scene(tuple(objects), spec.style, spec.background)
    raise RuntimeError(f"no room for {spec}")


def sample_pair(rng: np.random.Generator, category: Category | None = None) -> tuple[Spec, Scene]:
    """A training specification and a scene that fulfils it, neither of them held out."""
    while True:
        spec = sample_spec(rng, category)
        scene = place(spec, rng)
        if scene_is_trainable(scene):
            return spec, scene
