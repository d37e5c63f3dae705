"""Ways to spoil a clip. Edits of the scene change what happens. Damage to the frames changes how it looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from scipy import ndimage

from rewarddance.world.corrupt import another
from rewarddance.world.motion.render import Clip
from rewarddance.world.motion.sampling import TRAIN_ACTIONS, place
from rewarddance.world.motion.scene import FAMILY, Act, Action, Actor, MotionScene, MotionSpec, Pose
from rewarddance.world.motion.splits import scene_is_trainable
from rewarddance.world.sampling import TRAIN_STYLES
from rewarddance.world.scene import BACKGROUNDS, CANVAS, COLOURS, SHAPES

Edit = Literal["direction", "action", "speed", "freeze", "object", "colour", "drop", "ghost", "style", "background"]
EDITS: tuple[Edit, ...] = get_args(Edit)
EDIT_WEIGHTS = (0.17, 0.15, 0.14, 0.08, 0.10, 0.10, 0.06, 0.08, 0.04, 0.08)
"""Weights of `EDITS`."""
FIRST_FRAME_EDITS: tuple[Edit, ...] = ("direction", "action", "speed", "freeze", "ghost")
"""Edits that leave the first frame as it is."""

Damage = Literal["flicker", "freeze", "reverse", "shuffle", "noise", "blur"]
DAMAGES: tuple[Damage, ...] = get_args(Damage)

_OPPOSITE: dict[Action, Action] = {
    "moving left": "moving right",
    "moving right": "moving left",
    "moving up": "moving down",
    "moving down": "moving up",
    "growing": "shrinking",
    "shrinking": "growing",
    "appearing": "disappearing",
    "disappearing": "appearing",
}


def _new_action(act: Act, action: Action, rng: np.random.Generator) -> Act:
    """The same object with another action, at the same speed if both have one."""
    into = another(rng, COLOURS, act.colour) if action == "turning" else None
    timed = FAMILY[action] in ("translation", "oscillation", "growth", "orbit")
    return Act(act.colour, act.shape, action, act.speed if timed else None, into)


def _edited_act(act: Act, edit: Edit, rng: np.random.Generator) -> Act | None:
    if edit == "direction":
        opposite = _OPPOSITE.get(act.action)
        return None if opposite is None else replace(act, action=opposite)
    if edit == "action":
        chosen = another(rng, tuple(a for a in TRAIN_ACTIONS if a != "circling"), act.action)
        return _new_action(act, chosen, rng)
    if edit == "speed":
        return None if act.speed is None else replace(act, speed="fast" if act.speed == "slow" else "slow")
    if edit == "freeze":
        return None if act.action == "staying still" else Act(act.colour, act.shape, "staying still")
    if edit == "object":
        return replace(act, shape=another(rng, SHAPES, act.shape))
    if act.into is not None and rng.random() < 0.5:
        rest = tuple(c for c in COLOURS if c != act.colour)
        return replace(act, into=another(rng, rest, act.into))
    return replace(act, colour=another(rng, tuple(c for c in COLOURS if c != act.into), act.colour))


def _ghost(scene: MotionScene, rng: np.random.Generator) -> MotionScene:
    """A copy of an object that shows up elsewhere for 2 to 5 frames, never in the first."""
    actor = scene.actors[int(rng.integers(len(scene.actors)))]
    dx, dy = (float(v) for v in rng.uniform(12, 24, 2) * rng.choice([-1, 1], 2))
    num = int(rng.integers(2, 6))
    start = int(rng.integers(1, scene.num_frames - num + 1))
    poses = tuple(
        replace(p, x=(p.x + dx) % CANVAS, y=(p.y + dy) % CANVAS, visible=start <= k < start + num)
        for k, p in enumerate(actor.poses)
    )
    return replace(scene, ghosts=(*scene.ghosts, Actor(actor.act, poses)))


def _edited(scene: MotionScene, edit: Edit, rng: np.random.Generator, keep_first: bool) -> MotionScene | None:
    """One edit, or None when it cannot be made to this scene."""
    if edit == "style":
        return replace(scene, style=another(rng, TRAIN_STYLES, scene.style))
    if edit == "background":
        return replace(scene, background=another(rng, BACKGROUNDS, scene.background))
    if edit == "ghost":
        return _ghost(scene, rng)
    acts = list(scene.listing.acts)
    circling = acts[0].action == "circling"
    if edit == "drop":
        if len(acts) == 1 or circling:
            return None
        del acts[int(rng.integers(2))]
        left = tuple(a for a in scene.actors if a.act in acts)
        return replace(scene, actors=left)
    which = 0 if circling and edit in ("direction", "action", "speed", "freeze") else int(rng.integers(len(acts)))
    changed = _edited_act(acts[which], edit, rng)
    if changed is None:
        return None
    acts[which] = changed
    begin = tuple(actor.poses[0] for actor in scene.actors) if keep_first else None
    try:
        spec = MotionSpec(tuple(acts), scene.style, scene.background)
        return replace(place(spec, rng, begin), ghosts=scene.ghosts)
    except (ValueError, RuntimeError):  # two objects of one kind, or no room
        return None


def edit_scene(
    scene: MotionScene,
    rng: np.random.Generator,
    edit: Edit | None = None,
    weights: Sequence[float] = EDIT_WEIGHTS,
    keep_first: bool = False,
    accept: Callable[[MotionScene], bool] = scene_is_trainable,
) -> MotionScene:
    """The scene with one thing changed. An edit of an action draws a new course.

    Args:
        weights: how likely each of `EDITS` is where none is named; they add up to 1.
        keep_first: objects begin where they do in `scene`; only `FIRST_FRAME_EDITS` are drawn.
        accept: what the result must fulfil; it may be shown in training (see `splits`) by default.

    Raises:
        RuntimeError: no acceptable result in 25 draws.
    """
    p = np.array(weights) * [not keep_first or e in FIRST_FRAME_EDITS for e in EDITS]
    for _ in range(25):
        kind = edit or EDITS[int(rng.choice(len(EDITS), p=p / p.sum()))]
        changed = _edited(scene, kind, rng, keep_first)
        if changed is None or not accept(changed):
            continue
        if not keep_first or _same_first(changed, scene):
            return changed
    raise RuntimeError(f"cannot apply {edit or 'any edit'} to {scene}")


def _same_first(a: MotionScene, b: MotionScene) -> bool:
    def poses(scene: MotionScene) -> list[Pose | None]:
        return [x.poses[0] if x.poses[0].visible else None for x in (*scene.actors, *scene.ghosts)]

    return [p for p in poses(a) if p] == [p for p in poses(b) if p]


def damage(clip: Clip, kind: Damage, strength: float, rng: np.random.Generator) -> Clip:
    """Spoil the frames of a clip.

    Args:
        kind: `flicker` brightness that jumps from frame to frame; `freeze` the end stands still; `reverse` the clip
            runs back to its first frame from further and further in, and then forward (at 1 it runs backward);
            `shuffle` frames change places; `noise` Gaussian pixel noise in every frame; `blur` Gaussian.
        strength: 0 (unchanged) to 1 (hardly recognisable).
    """
    num = len(clip)
    last = round(strength * (num - 1))
    if kind == "freeze":
        return clip[np.minimum(np.arange(num), num - 1 - last)]
    if kind == "reverse":
        return clip[abs(np.arange(num) - last)]
    if kind == "shuffle":
        order = np.arange(num)
        some = rng.permutation(num)[: round(strength * num)]
        order[some] = np.roll(some, 1)
        return clip[order]
    x: Any = clip.astype(np.float32)
    if kind == "flicker":
        x = x + (110 * strength * rng.uniform(-1, 1, num))[:, None, None, None]
    elif kind == "noise":
        x = x + rng.normal(0, 90 * strength, x.shape)
    else:
        x = ndimage.gaussian_filter(x, (0, 3.5 * strength, 3.5 * strength, 0))
    return np.asarray(np.clip(x + 0.5, 0, 255), np.uint8)


def damage_randomly(clip: Clip, rng: np.random.Generator, most: float = 1.0, keep_first: bool = False) -> Clip:
    """One random damage with a random strength up to `most`; `keep_first` leaves the first frame as it is."""
    spoilt = damage(clip, DAMAGES[int(rng.integers(len(DAMAGES)))], float(rng.random()) * most, rng)
    return np.concatenate([clip[:1], spoilt[1:]]) if keep_first else spoilt
