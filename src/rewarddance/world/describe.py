"""Facts about scenes, the ground truth of questions: the objects' listing, and whether a specification is fulfilled.

These functions need the scene graph. The oracle (`oracle.py`) judges a generator's pictures from pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from rewarddance.world.scene import Colour, Placed, Relation, Scene, Shape, Spec, Term, along

NEAR = 5.0
"""Least difference of centres, in pixels, for one object to be left of or above another."""


Kinds = Counter[tuple[Colour, Shape, bool]]
"""Numbers of objects by (colour, shape, large)."""


def kinds(objects: Iterable[Placed | Term]) -> Kinds:
    """Count the objects of a scene, or the instances of a specification."""
    return Counter((o.colour, o.shape, o.large) for o in objects)


def terms_of(counts: Kinds) -> tuple[Term, ...]:
    """Terms in alphabetical order."""
    return tuple(Term(c, s, n, large) for (c, s, large), n in sorted(counts.items()))


def holds(a: Placed, relation: Relation, b: Placed) -> bool:
    """Does `a` stand in the relation to `b`?"""
    return along(relation, b.x - a.x, b.y - a.y) >= NEAR


def is_row(xs: np.ndarray, ys: np.ndarray) -> bool:
    """Three or more centres in one level line, evenly spread (pass y before x to test a stack)."""
    gaps = np.diff(np.sort(xs))
    return bool(np.ptp(ys) <= 4 and gaps.min() >= 10 and np.ptp(gaps) <= 6)


def listing(scene: Scene) -> Spec | None:
    """The plain listing of a scene ("two red circles and a blue square"), or None for an empty one."""
    counts = kinds(scene.objects)
    if not counts or max(counts.values()) > 5:
        return None
    return Spec(terms_of(counts), scene.style, scene.background)


def fulfils(scene: Scene, spec: Spec) -> bool:
    """Is the picture exactly what the specification asks for (no more, no less)?"""
    same_kinds = kinds(scene.objects) == kinds(spec.instances())
    if not same_kinds or (scene.style, scene.background) != (spec.style, spec.background):
        return False
    if spec.relation is not None:
        first = spec.terms[0]
        a, b = sorted(
            scene.objects, key=lambda o: (o.colour, o.shape, o.large) != (first.colour, first.shape, first.large)
        )
        return holds(a, spec.relation, b)
    xs, ys = (np.array([getattr(o, axis) for o in scene.objects]) for axis in "xy")
    if spec.arrangement == "row":
        return is_row(xs, ys)
    if spec.arrangement == "stack":
        return is_row(ys, xs)
    if spec.arrangement == "pair":
        return bool(np.ptp(ys) <= 4 and np.ptp(xs) <= 20)
    return True
