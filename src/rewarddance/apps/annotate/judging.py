"""The actions of the desk: next item, judgement, undo, progress. Each function is part of one transaction."""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping
from typing import Any

from sqlalchemy import case, func, or_, select, update
from sqlalchemy.orm import Session

from rewarddance.apps.annotate.answers import Answer, check_answers
from rewarddance.apps.annotate.assignment import (
    Ahead,
    Load,
    choose,
    choose_check,
    choose_repeat,
    due,
    lease_until,
    left_for,
    sides,
    turned,
)
from rewarddance.apps.annotate.clips import common_shape
from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.database import lock_desk
from rewarddance.apps.annotate.models import Assignment, Item, Judgement, Person, Record, Shown
from rewarddance.apps.annotate.showing import seen_of, shapes_of
from rewarddance.core.errors import InputError

SYSTEM = random.SystemRandom()


class ConflictError(InputError):
    """The request does not fit what was stored before."""


class UnknownError(InputError):
    """The thing does not exist, or it belongs to somebody else."""


def next_assignment(session: Session, person: int, config: DeskConfig, now: float) -> Assignment | None:
    """The item that a person judges now: the one they hold, or a new one. None if nothing is left for them."""
    lock_desk(session)
    open_ones = session.scalars(
        select(Assignment).where(Assignment.person_id == person, ~Assignment.done).order_by(Assignment.id)
    )
    for assignment in open_ones:
        if assignment.lease_until >= now or assignment.again or _has_room(session, assignment.item_id, config, now):
            assignment.lease_until = lease_until(now, config)
            return assignment
    return _new_assignment(session, person, config, now)


def taken_by(now: float) -> Any:
    """Judgements and running leases of an item, without repeats and without people who were excluded."""
    counts = or_(Assignment.done, Assignment.lease_until >= now)
    return func.coalesce(func.sum(case((counts & (Assignment.again == 0) & Person.excluded.is_(None), 1), else_=0)), 0)


def _has_room(session: Session, item: int, config: DeskConfig, now: float) -> bool:
    row = session.get_one(Item, item)
    taken = select(taken_by(now)).join(Person).where(Assignment.item_id == item)
    return row.noise is not None or int(session.scalar(taken) or 0) < config.judgements


def loads(session: Session, person: int, now: float, checks: bool) -> list[Load]:
    """All items (or all checks) that a person was never given, with the number of places that are taken."""
    own = select(Assignment.item_id).where(Assignment.person_id == person)
    taken = select(Assignment.item_id, taken_by(now).label("num")).join(Person).group_by(Assignment.item_id).subquery()
    query = (
        select(Item.id, func.coalesce(taken.c.num, 0), Item.place)
        .outerjoin(taken, taken.c.item_id == Item.id)
        .where(Item.noise.is_not(None) if checks else Item.noise.is_(None), Item.id.not_in(own))
        .order_by(Item.id)
    )
    return [Load(item, int(num), place) for item, num, place in session.execute(query)]


def _new_assignment(session: Session, person: int, config: DeskConfig, now: float) -> Assignment | None:
    given = session.execute(
        select(Assignment.item_id, Assignment.again, Assignment.done, Item.noise)
        .join(Item)
        .where(Assignment.person_id == person)
        .order_by(Assignment.id)
    ).all()
    kind = due(config, person, sum(row.done for row in given))
    if kind == "check":
        item = choose_check(loads(session, person, now, checks=True), SYSTEM)
        if item is not None:
            return _give(session, person, item, config, now)
    elif kind == "repeat":
        done = [row.item_id for row in given if row.done and not row.again and row.noise is None]
        repeated = frozenset(row.item_id for row in given if row.again)
        item = choose_repeat(done, repeated, SYSTEM)
        if item is not None:
            return _give(session, person, item, config, now, again=1)
    item = choose(loads(session, person, now, checks=False), config, SYSTEM)
    return None if item is None else _give(session, person, item, config, now)


def _give(session: Session, person: int, item: int, config: DeskConfig, now: float, again: int = 0) -> Assignment:
    pictures = session.get_one(Item, item).pictures
    order = sides(len(pictures), SYSTEM)
    if again:
        before = select(Assignment).where(
            Assignment.item_id == item, Assignment.person_id == person, Assignment.again == 0
        )
        order = turned(session.scalars(before).one().order)
    assignment = Assignment(
        token=secrets.token_urlsafe(16),
        item_id=item,
        person_id=person,
        again=again,
        order=list(order),
        created=now,
        lease_until=lease_until(now, config),
        done=False,
    )
    session.add(assignment)
    session.flush()
    for place, index in enumerate(order):
        token = secrets.token_urlsafe(16)
        session.add(Shown(token=token, assignment_id=assignment.id, place=place, picture_id=pictures[index]))
    session.flush()
    return assignment


def described(session: Session, assignment: Assignment, config: DeskConfig) -> dict[str, Any]:
    """An assignment as the page needs it. It says nothing about systems, files, checks, or repeats.

    `fps` is the common rate of clips, and None for pictures. `given` are the pictures that the candidates were made
    from: the first frame of image-to-video.
    """
    item = session.get_one(Item, assignment.item_id)
    record = session.get_one(Record, item.record_id)
    shapes, seen = shapes_of(record, item), seen_of(session, assignment, record)
    return {
        "assignment": assignment.token,
        "task": config.task,
        "criteria": list(config.asked),
        "prompt": record.prompt,
        "media": seen.candidates,
        "given": seen.given,
        "fps": common_shape(shapes).fps if shapes else None,
    }


def judge(
    session: Session,
    person: int,
    token: str,
    key: str,
    answers: Mapping[str, Answer],
    seconds: float,
    config: DeskConfig,
    now: float,
) -> bool:
    """Store a judgement. The same key again changes nothing. Returns whether it is new.

    A judgement that arrives after the end of its lease is kept too.

    Raises:
        InputError: the answers do not fit the desk.
        UnknownError: not an assignment of this person.
        ConflictError: the key stands for another judgement, or the item was judged with another key.
    """
    lock_desk(session)
    assignment = session.scalar(select(Assignment).where(Assignment.token == token, Assignment.person_id == person))
    if assignment is None:
        raise UnknownError("no such item for you; reload the page")
    values = {name: a.model_dump(exclude_none=True) for name, a in answers.items()}
    stored = session.scalar(select(Judgement).where(Judgement.person_id == person, Judgement.key == key))
    if stored is not None:
        if stored.assignment_id != assignment.id or stored.answers != values:
            raise ConflictError("this key belongs to another judgement")
        return False
    if assignment.done:
        raise ConflictError("you judged this item already")
    check_answers(answers, config, len(assignment.order))
    assignment.done = True
    took = max(0.0, min(seconds, now - assignment.created))
    session.add(
        Judgement(assignment_id=assignment.id, person_id=person, key=key, answers=values, seconds=took, created=now)
    )
    session.flush()
    return True


def undo(session: Session, person: int, config: DeskConfig, now: float) -> dict[str, Any] | None:
    """Withdraw a person's last judgement and give its item back. None where there is nothing to withdraw.

    Returns:
        The item as `described`, with the withdrawn `answers`.
    """
    lock_desk(session)
    last = session.scalar(
        select(Judgement)
        .where(Judgement.person_id == person, Judgement.withdrawn.is_(None))
        .order_by(Judgement.id.desc())
        .limit(1)
    )
    if last is None:
        return None
    last.withdrawn = now
    assignment = session.get_one(Assignment, last.assignment_id)
    assignment.done = False
    assignment.lease_until = lease_until(now, config)
    session.flush()
    return described(session, assignment, config) | {"answers": last.answers}


def progress_of(session: Session, person: int, config: DeskConfig, now: float) -> dict[str, int]:
    """How many items a person has judged, and how many are left for them. Both count checks and repeats too.

    The sum changes only when other people take items or give them back.
    """
    rows = session.execute(
        select(Assignment.again, Assignment.done, Assignment.lease_until, Item.noise)
        .join(Item)
        .where(Assignment.person_id == person)
    ).all()
    answered = [row for row in rows if row.done]
    held = [row for row in rows if not row.done and row.lease_until >= now]
    ahead = Ahead(
        position=len(answered) + len(held),
        items=sum(load.taken < config.judgements for load in loads(session, person, now, checks=False)),
        checks=len(loads(session, person, now, checks=True)),
        done=sum(row.noise is None and not row.again for row in (*answered, *held)),
        repeated=sum(row.again for row in rows),
    )
    return {"done": len(answered), "remaining": len(held) + left_for(ahead, config, person)}


def release(session: Session, person: int, now: float) -> None:
    """Free the item that a person holds, for example because the person was excluded."""
    held = (Assignment.person_id == person) & ~Assignment.done & (Assignment.lease_until > now)
    session.execute(update(Assignment).where(held).values(lease_until=now - 1))
