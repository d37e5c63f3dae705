"""The embedded world: its words, specifications (the meanings of prompts) and scenes (the contents of pictures).

`sampling.py` draws random specifications and scenes, `grammar.py` words specifications.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

CANVAS = 48
"""Side of every picture in pixels."""

Colour = Literal["red", "green", "blue", "yellow", "purple", "cyan"]
Shape = Literal["circle", "square", "triangle", "diamond", "cross"]
Style = Literal["flat", "outline", "striped", "dotted"]
Background = Literal["white", "grey", "black"]
Relation = Literal["left of", "right of", "above", "below"]
Arrangement = Literal["row", "stack", "pair", "crowd"]
Category = Literal["object", "attribute", "count", "relation", "concept"]

COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
STYLES: tuple[Style, ...] = get_args(Style)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
RELATIONS: tuple[Relation, ...] = get_args(Relation)
MIRRORED: dict[Relation, Relation] = {"right of": "left of", "below": "above"}
"""Relations that are rewritten with the objects exchanged: "a right of b" means "b left of a"."""
ARRANGEMENTS: tuple[Arrangement, ...] = get_args(Arrangement)
CATEGORIES: tuple[Category, ...] = get_args(Category)

RGB: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (40, 165, 70),
    "blue": (55, 85, 225),
    "yellow": (240, 200, 30),
    "purple": (165, 60, 195),
    "cyan": (40, 200, 215),
    "white": (245, 245, 245),
    "grey": (140, 140, 140),
    "black": (20, 20, 20),
}
"""Paint of every colour word, backgrounds included, 0..255."""

REGULAR_SIZES = (12, 13)
LARGE_SIZES = (18, 19)
"""Sides in pixels of an object's bounding square."""
SIZE_LINE = 15.5
"""Side in pixels between regular and large objects."""

ARRANGEMENT_COUNT: dict[Arrangement, int] = {"row": 3, "stack": 3, "pair": 2, "crowd": 5}
"""Number of objects of each arrangement. Four is a held-out count."""


@dataclass(frozen=True)
class Term:
    """`count` objects of one kind, for example "two large red circles"."""

    colour: Colour
    shape: Shape
    count: int = 1
    large: bool = False


@dataclass(frozen=True)
class Spec:
    """The meaning of a prompt: kinds and counts, relation or arrangement, style and background."""

    terms: tuple[Term, ...]
    style: Style = "flat"
    background: Background = "white"
    relation: Relation | None = None
    arrangement: Arrangement | None = None

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a Spec needs at least one term")
        if self.relation is not None and [t.count for t in self.terms] != [1, 1]:
            raise ValueError("a relation joins exactly two single objects")
        if self.arrangement is not None:
            count = ARRANGEMENT_COUNT[self.arrangement]
            if len(self.terms) != 1 or self.terms[0].count != count:
                raise ValueError(f"a {self.arrangement} is one term of {count} objects")

    @property
    def num_objects(self) -> int:
        return sum(t.count for t in self.terms)

    @property
    def category(self) -> Category:
        """The benchmark category of the prompt's hardest part."""
        if self.arrangement is not None:
            return "concept"
        if self.relation is not None:
            return "relation"
        if any(t.count > 1 for t in self.terms):
            return "count"
        return "attribute" if any(t.large for t in self.terms) else "object"

    def instances(self) -> tuple[Term, ...]:
        """One term of count 1 for every object that the prompt asks for."""
        return tuple(Term(t.colour, t.shape, 1, t.large) for t in self.terms for _ in range(t.count))


@dataclass(frozen=True)
class Placed:
    """One drawn object: `x`, `y` are its centre in pixels (y grows downward), `size` its side."""

    colour: Colour
    shape: Shape
    size: int
    x: int
    y: int

    @property
    def large(self) -> bool:
        return self.size > SIZE_LINE


class Sized(Protocol):
    """A centre and a side in pixels."""

    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...
    @property
    def size(self) -> float: ...


def gap(a: Sized, b: Sized) -> float:
    """Pixels between two bounding squares along the axis on which they are further apart; negative if they overlap."""
    return max(abs(a.x - b.x), abs(a.y - b.y)) - (a.size + b.size) / 2


def along(relation: Relation, dx: float, dy: float) -> float:
    """How far a second object lies from a first one in the direction of the relation, for an offset (dx, dy)."""
    return {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn."""

    objects: tuple[Placed, ...]
    style: Style
    background: Background
