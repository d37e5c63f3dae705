"""What is true of a scene: its listing, and whether it fulfils a specification. Ground truth for questions.

Works on scene graphs, so it serves what is drawn by us. What a generator drew is judged from pixels, by `oracle.py`.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from rewarddance.world.scene import Placed, Relation, Scene, Spec, Term

NEAR = 5.0
"""Least difference of centres, in pixels, for one object to be left of or above another."""


def kinds(scene: Scene) -> Counter[tuple[str, str, bool]]:
    """How many objects of every (colour, shape, large)."""
    return Counter((o.colour, o.shape, o.large) for o in scene.objects)


def holds(a: Placed, relation: Relation, b: Placed) -> bool:
    """Does `a` stand in the relation to `b`?"""
    dx, dy = b.x - a.x, b.y - a.y
    return {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation] >= NEAR


def is_row(xs: np.ndarray, ys: np.ndarray) -> bool:
    """Three or more centres in one level line, evenly spread (pass y before x to test a stack)."""
    gaps = np.diff(np.sort(xs))
    return bool(np.ptp(ys) <= 4 and gaps.min() >= 10 and np.ptp(gaps) <= 6)


def listing(scene: Scene) -> Spec | None:
    """The plain listing of a scene ("two red circles and a blue square"), or None for an empty one."""
    found = kinds(scene)
    if not found or max(found.values()) > 5:
        return None
    terms = tuple(Term(c, s, n, large) for (c, s, large), n in sorted(found.items()))  # type: ignore[arg-type]
    return Spec(terms, scene.style, scene.background)


def fulfils(scene: Scene, spec: Spec) -> bool:
    """Is the picture exactly what the specification asks for (no more, no less)?"""
    wanted = Counter((t.colour, t.shape, t.large) for t in spec.instances())
    if kinds(scene) != wanted or (scene.style, scene.background) != (spec.style, spec.background):
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
