"""Random specifications of the moving world, and random scenes that fulfil one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

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

TRAIN_ACTIONS: tuple[Action, ...] = tuple(a for a in ACTIONS if a != OOD_ACTION)
PAIR_SHARE = 0.4
"""Share of prompts with two objects, beside those of `circling`."""
OPEN_SHARE = 0.3
"""Share of acts whose prompt leaves the speed open."""
ORBIT_RADIUS, ORBIT_SIZE = 16.5, 10.0
"""Of `circling`: distance of the two centres, and the side of both objects, which pass each other's corners."""
GAP = 1.5
"""Least distance in pixels between the bounding squares of two objects, in every frame."""
MARGIN = 1.0
"""Least distance in pixels to the border of the picture, in every frame."""
TIMES = np.arange(NUM_FRAMES) / FPS
EVENT_FRAMES = (3, 4, 5, 6)
"""The first frame after something appears, disappears or turns."""


def _pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]


def sample_act(rng: np.random.Generator, action: Action) -> Act:
    """A random object that does this; its speed may be left open."""
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
        split: where the specification must belong; drawn again until it does.
        accept: a further condition.

    Raises:
        RuntimeError: nothing acceptable in 10,000 draws (the condition contradicts the split).
    """
    actions, styles = (ACTIONS, STYLES) if split == "ood" else (TRAIN_ACTIONS, TRAIN_STYLES)
    others = tuple(a for a in actions if a != "circling")
    for _ in range(10_000):
        first = sample_act(rng, action or _pick(rng, actions))
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


def _poses(act: Act, rng: np.random.Generator, centre: tuple[float, float] | None = None) -> tuple[Pose, ...]:
    """A random course of an act whose speed is set; what `circling` circles stands at `centre`."""
    sizes = np.full(NUM_FRAMES, float(_pick(rng, REGULAR_SIZES)))
    xs, ys = np.zeros(NUM_FRAMES), np.zeros(NUM_FRAMES)
    family = FAMILY[act.action]
    rate = _within(rng, *RATES[family][act.speed]) if act.speed else 0.0
    if family == "translation":
        dx, dy = HEADING[act.action]
        xs, ys = dx * rate * TIMES, dy * rate * TIMES
    elif act.action == "bouncing":
        ys = -_within(rng, 11, 14) * abs(np.sin(math.pi * rate * TIMES))
    elif act.action == "swaying":
        xs = _within(rng, 7, 9) * rng.choice([-1, 1]) * np.sin(2 * math.pi * rate * TIMES)
    elif family == "growth":
        change = rate * SECONDS
        sizes = np.linspace(0, change, NUM_FRAMES) + _within(rng, 9, min(11, 20.5 - change))
        sizes = sizes if act.action == "growing" else sizes[::-1]
    if centre is not None:
        sizes[:] = ORBIT_SIZE
        angle = 2 * math.pi * (rng.random() + rng.choice([-1, 1]) * rate * TIMES)
        xs, ys = centre[0] + ORBIT_RADIUS * np.cos(angle), centre[1] + ORBIT_RADIUS * np.sin(angle)
    else:
        reach = sizes / 2 + MARGIN
        xs = xs + _within(rng, float((reach - xs).max()), float((CANVAS - reach - xs).min()))
        ys = ys + _within(rng, float((reach - ys).max()), float((CANVAS - reach - ys).min()))
    event = int(_pick(rng, EVENT_FRAMES))
    late = np.arange(NUM_FRAMES) >= event
    visible = {"appearing": late, "disappearing": ~late}.get(act.action, np.ones(NUM_FRAMES, np.bool_))
    return tuple(
        Pose(act.into if act.into and late[k] else act.colour, float(xs[k]), float(ys[k]), float(sizes[k]), v)
        for k, v in enumerate(visible.tolist())
    )


def _clear(actors: tuple[Actor, ...]) -> bool:
    if len(actors) < 2:
        return True
    a, b = (np.array([(p.x, p.y, p.size) for p in actor.poses]) for actor in actors)
    apart = abs(a[:, :2] - b[:, :2]).max(1) - (a[:, 2] + b[:, 2]) / 2
    return bool(apart.min() >= GAP)


def _with_speed(act: Act, rng: np.random.Generator) -> Act:
    timed = act.speed is None and FAMILY[act.action] in RATES
    return replace(act, speed=_pick(rng, SPEEDS)) if timed else act


def place(spec: MotionSpec, rng: np.random.Generator) -> MotionScene:
    """A random scene that fulfils the specification; objects stay clear of one another and of the border.

    A speed that the prompt leaves open is drawn, but never one that would make the scene out of distribution.

    Raises:
        RuntimeError: no room found in 500 draws.
    """
    for _ in range(500):
        acts = tuple(_with_speed(a, rng) for a in spec.acts)
        if is_ood(replace(spec, acts=acts)) and not is_ood(spec):
            continue
        if acts[0].action == "circling":
            x, y = _within(rng, 23, 25), _within(rng, 23, 25)
            target = tuple(Pose(acts[1].colour, x, y, ORBIT_SIZE) for _ in TIMES)
            actors = (Actor(acts[0], _poses(acts[0], rng, (x, y))), Actor(acts[1], target))
        else:
            actors = tuple(Actor(a, _poses(a, rng)) for a in acts)
        if _clear(actors):
            return MotionScene(actors, spec.style, spec.background)
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
