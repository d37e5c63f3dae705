"""The parts of the moving world: acts, specifications (the meaning of a prompt) and scenes (the content of a clip).

Colours, shapes, styles and backgrounds are those of the still world. Frozen, hashable and free of randomness: sampling
lives in `sampling.py`, wording in `grammar.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rewarddance.world.scene import Background, Colour, Shape, Style

NUM_FRAMES = 9
"""Frames of every clip that this world draws: 4k + 1, as Wan wants."""
FPS = 8.0
"""Frames per second of every clip that this world draws. The first and the last frame are one second apart."""
SECONDS = (NUM_FRAMES - 1) / FPS

Action = Literal[
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "bouncing",
    "swaying",
    "growing",
    "shrinking",
    "circling",
    "appearing",
    "disappearing",
    "turning",
    "staying still",
]
"""`bouncing` goes up and down, `swaying` from side to side, `turning` changes the colour."""
Speed = Literal["slow", "fast"]
Family = Literal["translation", "oscillation", "growth", "orbit", "event", "rest"]

ACTIONS: tuple[Action, ...] = get_args(Action)
SPEEDS: tuple[Speed, ...] = get_args(Speed)

FAMILY: dict[Action, Family] = {
    **dict.fromkeys(("moving left", "moving right", "moving up", "moving down"), "translation"),
    **dict.fromkeys(("bouncing", "swaying"), "oscillation"),
    **dict.fromkeys(("growing", "shrinking"), "growth"),
    **dict.fromkeys(("appearing", "disappearing", "turning"), "event"),
    "circling": "orbit",
    "staying still": "rest",
}  # type: ignore[assignment]

HEADING: dict[Action, tuple[int, int]] = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
}
"""Direction of the centre's motion, (x, y); y grows downward."""

RATES: dict[Family, dict[Speed, tuple[float, float]]] = {
    "translation": {"slow": (8.0, 11.0), "fast": (22.0, 27.0)},
    "oscillation": {"slow": (1.0, 1.0), "fast": (2.0, 2.0)},
    "growth": {"slow": (5.0, 6.0), "fast": (10.0, 11.0)},
    "orbit": {"slow": (0.25, 0.33), "fast": (0.62, 0.75)},
}
"""Lowest and highest rate of each speed. Translation: pixels per second. Oscillation: cycles per second. Growth: change
of the side in pixels per second. Orbit: turns per second."""

RATE_LINE: dict[Family, float] = {
    family: math.sqrt(speeds["slow"][1] * speeds["fast"][0]) for family, speeds in RATES.items()
}
"""The rate between slow and fast, in the units of `RATES`."""


@dataclass(frozen=True)
class Act:
    """One object and its action, for example "a red circle slowly moving left".

    Attributes:
        speed: None where the prompt leaves it open, or the action has no speed (`RATES`).
        into: the colour after `turning`, otherwise None.
    """

    colour: Colour
    shape: Shape
    action: Action
    speed: Speed | None = None
    into: Colour | None = None

    def __post_init__(self) -> None:
        if self.speed is not None and FAMILY[self.action] not in RATES:
            raise ValueError(f"{self.action} has no speed")
        if (self.into is not None) != (self.action == "turning") or self.into == self.colour:
            raise ValueError("turning, and nothing else, names another colour")

    @property
    def kinds(self) -> tuple[tuple[Colour, Shape], ...]:
        """The colour and shape that the object shows first, and after a change of colour."""
        after = () if self.into is None else ((self.into, self.shape),)
        return ((self.colour, self.shape), *after)


@dataclass(frozen=True)
class MotionSpec:
    """The meaning of a prompt: one or two acts, style and background. What is circled stands second and stays still."""

    acts: tuple[Act, ...]
    style: Style = "flat"
    background: Background = "white"

    def __post_init__(self) -> None:
        if not 1 <= len(self.acts) <= 2:
            raise ValueError("a clip shows one or two objects")
        kinds = [kind for act in self.acts for kind in act.kinds]
        if len(set(kinds)) < len(kinds):
            raise ValueError("the two objects must differ in colour or shape at all times")
        circles = [act.action == "circling" for act in self.acts]
        if any(circles) and (circles != [True, False] or self.acts[1].action != "staying still"):
            raise ValueError("circling needs a second object, which stays still")


@dataclass(frozen=True)
class Pose:
    """An object in one frame. `x`, `y`: its centre in pixels from the upper left corner; `size`: its side."""

    colour: Colour
    x: float
    y: float
    size: float
    visible: bool = True


@dataclass(frozen=True)
class Actor:
    """A drawn object: its action with its speed, and its pose in every frame."""

    act: Act
    poses: tuple[Pose, ...]

    @property
    def shape(self) -> Shape:
        return self.act.shape


@dataclass(frozen=True)
class MotionScene:
    """A clip before it is drawn. Ghosts are drawn too, and nothing lists them."""

    actors: tuple[Actor, ...]
    style: Style
    background: Background
    ghosts: tuple[Actor, ...] = ()

    @property
    def num_frames(self) -> int:
        return len(self.actors[0].poses)

    @property
    def listing(self) -> MotionSpec:
        """The content of the scene with every speed, without ghosts."""
        return MotionSpec(tuple(a.act for a in self.actors), self.style, self.background)
