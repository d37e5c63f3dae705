"""Reads the valid judgements of a desk, as plain values for statistics, exports and studies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from rewarddance.apps.annotate.models import Assignment, Item, Judgement, Person


@dataclass(frozen=True)
class Given:
    """A judgement that was not withdrawn.

    Attributes:
        code: the person, as exports call them.
        members: places of the item's pictures among the record's candidates.
        order: the item's pictures from left to right.
        again: whether it repeats an earlier judgement.
        noise: place of the noise picture of a check; None for an item that counts.
    """

    record: int
    item: int
    person: int
    code: str
    excluded: bool
    members: tuple[int, ...]
    order: tuple[int, ...]
    again: bool
    noise: int | None
    answers: dict[str, Any]
    seconds: float
    created: float

    @property
    def counts(self) -> bool:
        """Whether it counts in exports and results."""
        return not (self.again or self.excluded or self.noise is not None)


def judgements(session: Session) -> Iterator[Given]:
    """All judgements that were not withdrawn, in the order in which they came."""
    query = (
        select(Judgement, Assignment, Item, Person)
        .join(Assignment, Assignment.id == Judgement.assignment_id)
        .join(Item, Item.id == Assignment.item_id)
        .join(Person, Person.id == Assignment.person_id)
        .where(Judgement.withdrawn.is_(None))
        .order_by(Judgement.id)
    )
    for judgement, assignment, item, person in session.execute(query):
        yield Given(
            item.record_id,
            item.id,
            person.id,
            person.code,
            person.excluded is not None,
            tuple(item.members),
            tuple(assignment.order),
            bool(assignment.again),
            item.noise,
            judgement.answers,
            judgement.seconds,
            judgement.created,
        )
