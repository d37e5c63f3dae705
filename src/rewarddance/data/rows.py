"""A row of a preference file, in any supported shape, as a `Draft`: which pictures, and which is better."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.core.preferences import Choice, from_ranking

LABELS: dict[str, float] = {
    "a": 1.0, "b": 0.0, "tie": 0.5, "same": 0.5, "1": 1.0, "2": 0.0, "left": 1.0, "right": 0.0,
}  # fmt: skip
"""Accepted values of `label`, as the probability that the first picture is better."""


@dataclass(frozen=True)
class Draft:
    """A parsed row. Its pictures are not loaded yet; paths are as the file gives them."""

    record_id: str
    prompt: str
    paths: tuple[str, ...]
    choices: tuple[Choice, ...]
    groups: dict[str, str] = field(default_factory=dict)
    criterion: str = "overall"
    ratings: tuple[float, ...] | None = None


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"empty or missing {key!r}")
    return value.strip()


LOWEST, HIGHEST = 1, 5
"""The range of a rating."""
GROUPS = ("generator", "category", "style", "annotator")
"""Columns that name groups of rows; `train --leave-one-out` makes folds of them."""


def parse_row(row: dict[str, Any], number: int, criteria: Collection[str] = ("overall",)) -> Draft:
    """Parse one row of any supported shape, with its groups and its criterion.

    Raises:
        InputError: what is wrong with the row.
    """
    groups = {name: str(row[name]).strip() for name in GROUPS if row.get(name) not in (None, "")}
    criterion = str(row.get("criterion") or "overall")
    if criterion not in criteria:
        raise InputError(f"unknown criterion {criterion!r}; known: {', '.join(criteria)}")
    return replace(_preference(row, number), groups=groups, criterion=criterion)


def _preference(row: dict[str, Any], number: int) -> Draft:
    """One row of any supported shape.

    Shapes: prompt with `image_a`, `image_b` and `label` (a, b, tie), `probability` (of the first) or `votes_a` and
    `votes_b`, or `rating_a` and `rating_b` (1 to 5, higher is better); with `chosen`, `rejected`; with `images` (or
    `generations`) and `ranking` (lower is better, equal is a tie) or `ratings`.

    Raises:
        InputError: what is wrong with the row.
    """
    prompt, name = _text(row, "prompt"), str(row.get("id") or f"row-{number}")
    if len(shapes := _given(row, "image_a", "chosen", "images", "generations")) > 1:
        raise InputError(f"both {shapes[0]} and {shapes[1]}: keep one of them")
    if "image_a" in row or "image_b" in row:
        paths = _text(row, "image_a"), _text(row, "image_b")
        if _given(row, "rating_a", "rating_b"):
            _alone(row, "ratings", "label", "probability", "votes_a", "votes_b")
            return _rated(name, prompt, paths, [row.get("rating_a"), row.get("rating_b")])
        return Draft(name, prompt, paths, (Choice(0, 1, _label(row)),))
    if "chosen" in row or "rejected" in row:
        return Draft(name, prompt, (_text(row, "chosen"), _text(row, "rejected")), (Choice(0, 1, 1.0),))
    images = row.get("images", row.get("generations"))
    kind, numbers = ("ratings", row["ratings"]) if _given(row, "ratings") else ("ranks", row.get("ranking"))
    if kind == "ratings":
        _alone(row, "ratings", "ranking")
    if not isinstance(images, list) or not isinstance(numbers, list):
        raise InputError("no preference: needs image_a/image_b/label, chosen/rejected, or images/ranking (or ratings)")
    if len(images) != len(numbers) or len(images) < 2:
        raise InputError(
            f"{len(images)} images and {len(numbers)} {kind}; needs two or more, and the same number of both"
        )
    if not all(isinstance(p, str) for p in images):
        raise InputError("images must be paths")
    files = tuple(images)
    return _rated(name, prompt, files, numbers) if kind == "ratings" else _ranked(name, prompt, files, numbers)


def _ranked(name: str, prompt: str, images: tuple[str, ...], ranking: list[Any]) -> Draft:
    if not all(isinstance(r, int | float) for r in ranking):
        raise InputError("ranks must be numbers")
    return Draft(name, prompt, images, from_ranking([_number(r, "rank") for r in ranking]))


def _given(row: dict[str, Any], *columns: str) -> list[str]:
    """The columns that are present and not empty."""
    return [c for c in columns if row.get(c) not in (None, "")]


def _alone(row: dict[str, Any], name: str, *others: str) -> None:
    """Refuse a row that states the preference in two ways."""
    if _given(row, *others):
        raise InputError(f"both {name} and {_given(row, *others)[0]}: keep one of them")


def _rated(name: str, prompt: str, images: tuple[str, ...], values: list[Any]) -> Draft:
    """A row with one mean rating a picture: the ratings (for `regression`) and the choices that they imply."""
    ratings = tuple(_number(r, "rating") for r in values)
    wrong = [r for r in ratings if not LOWEST <= r <= HIGHEST]
    if wrong:
        raise InputError(f"rating {wrong[0]:g} is not between {LOWEST} and {HIGHEST}; rescale them")
    return Draft(name, prompt, images, from_ranking([-r for r in ratings]), ratings=ratings)


def _label(row: dict[str, Any]) -> float:
    """Probability that the first picture is better, from `probability`, the votes or `label`, in this order.

    Raises:
        InputError: none is given, or two of them prefer different pictures.
    """
    stated: dict[str, float] = {}
    if _given(row, "probability"):
        stated["probability"] = _number(row["probability"], "probability")
        if not 0 <= stated["probability"] <= 1:
            raise InputError(f"probability {stated['probability']} is not between 0 and 1")
    if _given(row, "votes_a"):
        votes = _number(row["votes_a"], "votes_a"), _number(row.get("votes_b"), "votes_b")
        if min(votes) < 0 or sum(votes) == 0:
            raise InputError(f"votes {votes[0]:g} and {votes[1]:g}: needs one or more, none negative")
        stated["votes"] = votes[0] / sum(votes)
    if _given(row, "label") or not stated:
        stated["label"] = _word(row.get("label"))
    first, *others = stated
    for other in others:
        if (stated[first] - 0.5) * (stated[other] - 0.5) < 0:
            raise InputError(f"{first} and {other} prefer different pictures")
    return stated[first]


def _word(value: Any) -> float:
    label = _text({"label": "" if value is None else str(value)}, "label").lower()
    if label in ("0", "0.0"):
        raise Ambiguous("label 0: some files count pictures from 0, others mean 'the second'; write a, b or tie")
    if label not in LABELS:
        raise InputError(f"unknown label {label!r}; use a, b or tie, or a column `probability` (of the first)")
    return LABELS[label]


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} {str(value)[:40]!r} is not a number") from None
    if not math.isfinite(number):
        raise InputError(f"{name} {value!r} is not a finite number")
    return number


class Ambiguous(InputError):
    """A row that makes the meaning of all rows uncertain. The import stops, also with `on_error="skip"`."""
