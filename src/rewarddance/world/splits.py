"""What is held out, of every stream: VLM and generator pretraining, corruptions, preferences.

`ood` is decided by rule (kinds, counts, styles); `held_out` is a fixed tenth of everything else, by a
hash of the meaning, so that no wording of a held-out specification is ever trained on. Pictures are held out by what
they hold (kinds, style, counts and their plain listing), not by every relation or arrangement that may be read into
them: a training picture of a circle and a square may show a relation that is held out as a prompt, unspoken.
"""

from __future__ import annotations

import zlib
from typing import Literal

from rewarddance.world.scene import MIRRORED, Scene, Spec, Term

Split = Literal["train", "held_out", "ood"]

OOD_KINDS = frozenset({("red", "triangle"), ("blue", "cross"), ("green", "circle"), ("yellow", "diamond")})
"""Colour-shape combinations that no training stream shows or names."""
OOD_STYLE = "dotted"
OOD_COUNT = 4
"""A picture of exactly this many objects of one kind is never trained on."""
HELD_OUT_SHARE = 0.1


def is_ood(spec: Spec) -> bool:
    """Does the specification hold something that training never saw (kind, style or count)?"""
    return (
        spec.style == OOD_STYLE
        or any((t.colour, t.shape) in OOD_KINDS for t in spec.terms)
        or any(t.count == OOD_COUNT for t in spec.terms)
    )


def meaning(spec: Spec) -> str:
    """One string for everything that means the same: order of terms and mirrored relations do not count."""
    terms, relation = spec.terms, spec.relation
    if relation in MIRRORED:
        terms, relation = terms[::-1], MIRRORED[relation]
    names = [f"{t.count} {'large ' if t.large else ''}{t.colour} {t.shape}" for t in terms]
    if relation is None:
        names.sort()
    return "|".join([*names, relation or "", spec.arrangement or "", spec.style, spec.background])


def split_of(spec: Spec) -> Split:
    """The split that a specification belongs to, the same on every machine and in every version."""
    if is_ood(spec):
        return "ood"
    bucket = zlib.crc32(meaning(spec).encode()) % 1000
    return "held_out" if bucket < HELD_OUT_SHARE * 1000 else "train"


def scene_is_trainable(scene: Scene) -> bool:
    """May a training stream show this scene, whatever it is asked about?

    Stricter than any one description: neither the kinds, style and counts, nor the plain listing of
    what is in the picture, may be held out.
    """
    counts: dict[Term, int] = {}
    for o in scene.objects:
        key = Term(o.colour, o.shape, 1, o.large)
        counts[key] = counts.get(key, 0) + 1
    if not counts:
        return True
    terms = tuple(Term(t.colour, t.shape, n, t.large) for t, n in counts.items())
    return split_of(Spec(terms, scene.style, scene.background)) == "train"
