"""Random specifications of the moving world, and random scenes that fulfil one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rewarddance.world.motion.scene import (
    ACTIONS,
    FAMILY,
    FPS,
    HEADING,
    NUM_FRAMES,
    RATES,
    SECONDS,
    SPEEDS,
    Act,
    Action,
    Actor,
    MotionScene,
    MotionSpec,
    Pose,
)
from rewarddance.world.motion.splits import OOD_ACTION, is_ood, scene_is_trainable, split_of
from rewarddance.world.sampling import TRAIN_STYLES
from rewarddance.world.scene import BACKGROUNDS, CANVAS, COLOURS, REGULAR_SIZES, SHAPES, STYLES
from rewarddance.world.splits import Split

T = TypeVar("T")
Array = NDArray[np.float64]

TRAIN_ACTIONS: tuple[Action, ...] = tuple(a for a in ACTIONS if a != OOD_ACTION)
PAIR_SHARE = 0.4
"""Share of prompts with two objects, not counting those of `circling`."""
OPEN_SHARE = 0.3
"""Share of acts whose prompt leaves the speed open."""
ORBIT_RADIUS, ORBIT_SIZE = 16.5, 10.0
"""For `circling`: distance of the two centres, and the side of both objects, whose corners pass each other."""
GAP = 1.5
"""Least distance in pixels between the bounding squares of two objects, in every frame."""
MARGIN = 1.0
"""Least distance in pixels to the border of the picture, in every frame."""
SIDES = (8.5, 21.5)
"""Smallest and largest side of an object in pixels, in any frame."""
DRAWS = 200
"""Number of courses that are tried before a specification counts as impossible; from given places, a tenth of it."""
TIMES = np.arange(NUM_FRAMES) / FPS
EVENT_FRAMES = (3, 4, 5, 6)
"""The first frame after something appears, disappears or turns."""


def _pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]


def sample_act(rng: np.random.Generator, action: Action) -> Act:
    """A random object with this action; its speed may be left open."""
    colour, shape = _pick(rng, COLOURS), _pick(rng, SHAPES)
    timed = FAMILY[action] in RATES and rng.random() >= OPEN_SHARE
    into = _pick(rng, tuple(c for c in COLOURS if c != colour)) if action == "turning" else None
    return Act(colour, shape, action, _pick(rng, SPEEDS) if timed else None, into)


def sample_spec(
    rng: np.random.Generator,
    action: Action | None = None,
    split: Split = "train",
    accept: Callable[[MotionSpec], bool] | None = None,
) -> MotionSpec:
    """A random specification.

    Args:
        action: what the first object does; drawn evenly when None.
        split: the split of the specification; it is drawn again until it belongs there.
        accept: a further condition.

    Raises:
        RuntimeError: nothing acceptable in 10,000 draws (the condition contradicts the split).
    """
    actions, styles = (ACTIONS, STYLES) if split == "ood" else (TRAIN_ACTIONS, TRAIN_STYLES)
    others = tuple(a for a in actions if a != "circling")
    for _ in range(10_000):
        chosen: Action = _pick(rng, actions) if action is None else action
        first = sample_act(rng, chosen)
        acts: tuple[Act, ...] = (first,)
        if first.action == "circling":
            acts = (first, sample_act(rng, "staying still"))
        elif rng.random() < PAIR_SHARE:
            acts = (first, sample_act(rng, _pick(rng, others)))
        try:
            spec = MotionSpec(acts, _pick(rng, styles), _pick(rng, BACKGROUNDS))
        except ValueError:  # two objects of one kind
            continue
        if split_of(spec) == split and (accept is None or accept(spec)):
            return spec
    raise RuntimeError(f"no acceptable specification of {action or 'any action'} in split {split!r} after 10,000 draws")


def _within(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


@dataclass(frozen=True)
class _Course:
    """Way and sizes of an object, relative to where it begins; each (NUM_FRAMES,)."""

    xs: Array
    ys: Array
    sizes: Array


def _course(act: Act, rng: np.random.Generator, size: float | None) -> _Course:
    """A random course of an act whose speed is set. `size`: the side in the first frame, drawn when None."""
    still = np.zeros(NUM_FRAMES)
    begin = float(_pick(rng, REGULAR_SIZES)) if size is None else size
    sizes = np.full(NUM_FRAMES, begin)
    family = FAMILY[act.action]
    rate = _within(rng, *RATES[family][act.speed]) if act.speed else 0.0
    if family == "translation":
        dx, dy = HEADING[act.action]
        return _Course(dx * rate * TIMES, dy * rate * TIMES, sizes)
    if act.action == "bouncing":
        height: Array = abs(np.sin(math.pi * rate * TIMES))
        return _Course(still, -_within(rng, 11, 14) * height, sizes)
    if act.action == "swaying":
        swing = np.sin(2 * math.pi * rate * TIMES)
        return _Course(_within(rng, 7, 9) * rng.choice([-1, 1]) * swing, still, sizes)
    if family == "growth":
        small = float(rng.integers(9, 11 if act.speed == "slow" else 10))
        change = rate * (1 if act.action == "growing" else -1)
        begin = size or (small if change > 0 else math.ceil(small - change * SECONDS))
        return _Course(still, still, begin + change * TIMES)
    return _Course(still, still, sizes)


def _orbit(act: Act, rng: np.random.Generator, centre: Pose, begin: Pose | None) -> _Course:
    """A random way around `centre`, in pixels of the picture."""
    rate = _within(rng, *RATES["orbit"][act.speed or "slow"]) * float(rng.choice([-1, 1]))
    start = rng.random() if begin is None else math.atan2(begin.y - centre.y, begin.x - centre.x) / (2 * math.pi)
    angle = 2 * math.pi * (start + rate * TIMES)
    xs, ys = centre.x + ORBIT_RADIUS * np.cos(angle), centre.y + ORBIT_RADIUS * np.sin(angle)
    return _Course(xs, ys, np.full(NUM_FRAMES, ORBIT_SIZE))


def _poses(act: Act, course: _Course, rng: np.random.Generator) -> tuple[Pose, ...]:
    late = np.arange(NUM_FRAMES) >= _pick(rng, EVENT_FRAMES)
    visible = {"appearing": late, "disappearing": ~late}.get(act.action, np.ones(NUM_FRAMES, np.bool_))
    rows = zip(course.xs.tolist(), course.ys.tolist(), course.sizes.tolist(), visible.tolist(), strict=True)
    colours = [act.into if act.into and changed else act.colour for changed in late]
    return tuple(Pose(c, x, y, size, v) for c, (x, y, size, v) in zip(colours, rows, strict=True))


def _actor(act: Act, rng: np.random.Generator, begin: Pose | None) -> Actor | None:
    """An object on a random course of an act; None where a course from `begin` would leave the picture.

    Its first bounding square lies on whole pixels, as in the still world.
    """
    course = _course(act, rng, None if begin is None else begin.size)
    if not SIDES[0] <= course.sizes.min() <= course.sizes.max() <= SIDES[1]:
        return None
    reach = course.sizes / 2 + MARGIN
    given = (None, None) if begin is None else (begin.x, begin.y)
    starts = []
    for way, fixed in zip((course.xs, course.ys), given, strict=True):
        low, high = float((reach - way).max()), float((CANVAS - reach - way).min())
        start = _on_whole_pixels(rng, low, high, float(course.sizes[0]) / 2) if fixed is None else fixed
        if not low <= start <= high:
            return None
        starts.append(start)
    return Actor(act, _poses(act, _Course(course.xs + starts[0], course.ys + starts[1], course.sizes), rng))


def _on_whole_pixels(rng: np.random.Generator, low: float, high: float, half: float) -> float:
    """A centre from `low` on, for an object of `half` its side, whose edge lies between two pixels."""
    return max(math.floor(_within(rng, low, high) - half), math.ceil(low - half)) + half


def _orbiting(acts: tuple[Act, ...], rng: np.random.Generator, begin: tuple[Pose, ...] | None) -> tuple[Actor, ...]:
    x, y = (_within(rng, 23, 25) for _ in range(2))
    centre = Pose(acts[1].colour, x, y, ORBIT_SIZE) if begin is None else replace(begin[1], colour=acts[1].colour)
    course = _orbit(acts[0], rng, centre, None if begin is None else begin[0])
    return Actor(acts[0], _poses(acts[0], course, rng)), Actor(acts[1], (centre,) * NUM_FRAMES)


def _clear(actors: tuple[Actor, ...]) -> bool:
    if len(actors) < 2:
        return True
    a, b = (np.array([(p.x, p.y, p.size) for p in actor.poses]) for actor in actors)
    apart = abs(a[:, :2] - b[:, :2]).max(1) - (a[:, 2] + b[:, 2]) / 2
    return bool(apart.min() >= GAP)


def _with_speed(act: Act, rng: np.random.Generator) -> Act:
    timed = act.speed is None and FAMILY[act.action] in RATES
    return replace(act, speed=_pick(rng, SPEEDS)) if timed else act


def place(spec: MotionSpec, rng: np.random.Generator, begin: tuple[Pose, ...] | None = None) -> MotionScene:
    """A random scene that fulfils the specification; objects stay clear of one another and of the border.

    A speed that the prompt leaves open is drawn, but never one that would make the scene out of distribution.

    Args:
        begin: place and size of every act's object in the first frame; drawn when None. The second object must stand
            where the first can circle it, if that is asked.

    Raises:
        RuntimeError: no room found in `DRAWS` draws.
    """
    for _ in range(DRAWS if begin is None else DRAWS // 10):
        acts = tuple(_with_speed(a, rng) for a in spec.acts)
        if is_ood(replace(spec, acts=acts)) and not is_ood(spec):
            continue
        if acts[0].action == "circling":
            actors: tuple[Actor | None, ...] = _orbiting(acts, rng, begin)
        else:
            actors = tuple(_actor(a, rng, None if begin is None else begin[i]) for i, a in enumerate(acts))
        whole = tuple(a for a in actors if a is not None)
        if len(whole) == len(acts) and _clear(whole):
            return MotionScene(whole, spec.style, spec.background)
    raise RuntimeError(f"no room for {spec}")


def sample_pair(rng: np.random.Generator, action: Action | None = None) -> tuple[MotionSpec, MotionScene]:
    """A training specification and a scene that fulfils it, neither of them held out."""
    while True:
        spec = sample_spec(rng, action)
        try:
            scene = place(spec, rng)
        except RuntimeError:  # two objects that cannot but collide
            continue
        if scene_is_trainable(scene):
            return spec, scene
