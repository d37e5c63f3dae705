"""Checks the answers that the pages send, and turns them into votes. No database here.

Answers name pictures by their place on the page: `first` is the left one, ranks go from left to right. Votes name
candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.core.errors import InputError
from rewarddance.data.votes import Vote

Picked = Literal["first", "second", "tie", "both_bad"]
SCALE = (1.0, 5.0)


class Answer(BaseModel):
    """The answer to one criterion: `choice` with `strength`, `rating`, or `ranks` (1 is best, equal ones are ties)."""

    model_config = ConfigDict(extra="forbid")
    choice: Picked | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    rating: Annotated[int, Field(ge=1, le=5)] | None = None
    ranks: Annotated[list[Annotated[int, Field(ge=1, le=20)]], Field(max_length=20)] | None = None


def check_answers(answers: Mapping[str, Answer], config: DeskConfig, num: int) -> None:
    """Check that every criterion has an answer of the desk's kind.

    Args:
        num: pictures that were shown.

    Raises:
        InputError: says what is missing or does not belong.
    """
    wrong = [*(c for c in config.asked if c not in answers), *(c for c in answers if c not in config.asked)]
    if wrong:
        state = "has no answer" if wrong[0] in config.asked else "is not asked here"
        raise InputError(f"criterion {wrong[0]!r} {state}")
    field = {"pairwise": "choice", "rating": "rating", "ranking": "ranks"}[config.task]
    for criterion, answer in answers.items():
        given = {name for name, value in answer.model_dump().items() if value is not None}
        if field not in given or given - {field, *(("strength",) if config.task == "pairwise" else ())}:
            raise InputError(f"{criterion}: this desk takes {field} only")
        if answer.strength is not None and answer.choice not in ("first", "second"):
            raise InputError(f"{criterion}: a tie has no strength")
        if answer.ranks is not None and len(answer.ranks) != num:
            raise InputError(f"{criterion}: {len(answer.ranks)} ranks for {num} pictures")


def passed(noise: int, order: Sequence[int], answers: Mapping[str, Any], config: DeskConfig) -> bool:
    """Whether a check was answered right by every criterion of `DeskConfig.checked`.

    The noise must lose, be rated 1 or 2, or be ranked strictly last.
    """
    place = list(order).index(noise)
    return all(_noise_lost(place, answers[name], config) for name in config.checked)


def _noise_lost(place: int, answer: Mapping[str, Any], config: DeskConfig) -> bool:
    if config.task == "pairwise":
        return bool(answer["choice"] == ("second", "first")[place])
    if config.task == "rating":
        return bool(answer["rating"] <= 2)
    ranks = answer["ranks"]
    return all(rank < ranks[place] for i, rank in enumerate(ranks) if i != place)


def votes_of(
    answers: Mapping[str, Any], members: Sequence[int], order: Sequence[int], config: DeskConfig, **facts: Any
) -> list[Vote]:
    """The votes of a judgement, one a criterion, in terms of the record's candidates.

    A choice names the candidate with the smaller number first, on whichever side it was shown; `shown` has the sides.

    Args:
        members: places of the item's pictures among the candidates.
        order: the item's pictures from left to right.
        facts: further fields of the votes.
    """
    shown = tuple(members[i] for i in order)
    return [_vote(answer, shown, {"criterion": name, "shown": shown, **facts}) for name, answer in answers.items()]


def _vote(answer: Mapping[str, Any], shown: tuple[int, ...], facts: Mapping[str, Any]) -> Vote:
    if answer.get("rating") is not None:
        return Vote("rating", shown, (float(answer["rating"]),), scale=SCALE, **facts)
    if answer.get("ranks") is not None:
        ranked = dict(zip(shown, answer["ranks"], strict=True))
        media = tuple(sorted(ranked))
        return Vote("ranking", media, tuple(float(ranked[i]) for i in media), **facts)
    media = tuple(sorted(shown))
    left = {"first": 1.0, "second": 0.0}.get(answer["choice"], 0.5)
    label = left if media == shown else 1 - left
    bad = answer["choice"] == "both_bad"
    return Vote("choice", media, (label,), both_bad=bad, strength=answer.get("strength"), **facts)
