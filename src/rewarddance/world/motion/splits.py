"""The parts of the moving world that every training stream holds out, besides the still world's kinds and style.

`ood` is decided by rule. `held_out` is a tenth of the rest, by a hash of what is shown without its speed, so that no
training clip shows what a held-out prompt asks for.
"""

from __future__ import annotations

import zlib

from rewarddance.world.motion.scene import Act, Action, MotionScene, MotionSpec, Speed
from rewarddance.world.scene import Shape
from rewarddance.world.splits import HELD_OUT_SHARE, OOD_KINDS, OOD_STYLE, Split

OOD_ACTION: Action = "swaying"
"""A motion that no training stream shows or names."""
OOD_SPEEDS: frozenset[tuple[Action, Speed]] = frozenset({("moving up", "fast"), ("growing", "slow")})
OOD_SHAPES: frozenset[tuple[Shape, Action]] = frozenset(
    {("triangle", "bouncing"), ("cross", "moving left"), ("circle", "shrinking"), ("square", "circling")}
)
"""Shapes that are never seen doing these."""
OOD_TOGETHER: frozenset[frozenset[Action]] = frozenset(
    {frozenset({"growing", "shrinking"}), frozenset({"moving left", "moving right"}), frozenset({"bouncing"})}
)
"""Actions of two objects that are never seen together; {"bouncing"} is two objects that bounce."""


def is_ood(spec: MotionSpec) -> bool:
    """Does the specification hold something that training never saw?"""
    together = frozenset(a.action for a in spec.acts) if len(spec.acts) > 1 else None
    return (
        spec.style == OOD_STYLE
        or together in OOD_TOGETHER
        or any(
            OOD_KINDS.intersection(a.kinds)
            or a.action == OOD_ACTION
            or (a.action, a.speed) in OOD_SPEEDS
            or (a.shape, a.action) in OOD_SHAPES
            for a in spec.acts
        )
    )


def _words(act: Act, speed: bool) -> str:
    return f"{act.colour} {act.shape} {act.speed or '' if speed else ''} {act.action} {act.into or ''}"


def meaning(spec: MotionSpec, speed: bool = True) -> str:
    """One string for everything that means the same: the order of the acts does not count. `speed`: speeds count."""
    return "|".join([*sorted(_words(a, speed) for a in spec.acts), spec.style, spec.background])


def split_of(spec: MotionSpec) -> Split:
    """The split that a specification belongs to, the same on every machine and in every version."""
    if is_ood(spec):
        return "ood"
    bucket = zlib.crc32(meaning(spec, speed=False).encode()) % 1000
    return "held_out" if bucket < HELD_OUT_SHARE * 1000 else "train"


def scene_is_trainable(scene: MotionScene) -> bool:
    """Whether a training stream may show this scene, with any prompt."""
    return split_of(scene.listing) == "train"
