"""Held-out content. No training stream shows it: VLM and generator pretraining, corruptions, preferences.

`ood` follows from rules (kinds, counts, styles). `held_out` is a fixed tenth of all other specifications, by a hash of
the meaning, so that no wording of a held-out specification is ever trained on. Pictures are held out by their kinds,
style, counts and plain listing, but not by relations or arrangements. A training picture of a circle and a square may
show a relation that is held out as a prompt; no text of the training names it.
"""

from __future__ import annotations

import zlib
from typing import Literal

from rewarddance.world.describe import kinds, terms_of
from rewarddance.world.scene import MIRRORED, Scene, Spec

Split = Literal["train", "held_out", "ood"]

OOD_KINDS = frozenset({("red", "triangle"), ("blue", "cross"), ("green", "circle"), ("yellow", "diamond")})
"""Colour-shape combinations that no training stream shows or names."""
OOD_STYLE = "dotted"
OOD_COUNT = 4
"""A picture of exactly this many objects of one kind is never trained on."""
HELD_OUT_SHARE = 0.1


def is_ood(spec: Spec) -> bool:
    """Does the specification have a kind, style or count that no training stream has?"""
    return (
        spec.style == OOD_STYLE
        or any((t.colour, t.shape) in OOD_KINDS for t in spec.terms)
        or any(t.count == OOD_COUNT for t in spec.terms)
    )


def meaning(spec: Spec) -> str:
    """A string that is equal for equal meanings: the order of terms and mirrored relations do not count."""
    terms, relation = spec.terms, spec.relation
    if relation in MIRRORED:
        terms, relation = terms[::-1], MIRRORED[relation]
    names = [f"{t.count} {'large ' if t.large else ''}{t.colour} {t.shape}" for t in terms]
    if relation is None:
        names.sort()
    return "|".join([*names, relation or "", spec.arrangement or "", spec.style, spec.background])


def split_of(spec: Spec) -> Split:
    """The split of a specification. It is the same on all machines and in all versions."""
    if is_ood(spec):
        return "ood"
    bucket = zlib.crc32(meaning(spec).encode()) % 1000
    return "held_out" if bucket < HELD_OUT_SHARE * 1000 else "train"


def scene_is_trainable(scene: Scene) -> bool:
    """May a training stream show this scene? Its kinds, style, counts and plain listing must not be held out."""
    terms = terms_of(kinds(scene.objects))
    return not terms or split_of(Spec(terms, scene.style, scene.background)) == "train"
