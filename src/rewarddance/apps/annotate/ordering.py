"""Which open pairs people see first: the rule of `data select`, with judges that are asked again while people work."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.database import Database, lock_desk
from rewarddance.apps.annotate.export import voted_record
from rewarddance.apps.annotate.filling import settings_of
from rewarddance.apps.annotate.judging import taken_by
from rewarddance.apps.annotate.models import Assignment, Desk, Item, Person
from rewarddance.core.progress import say
from rewarddance.core.streams import stream
from rewarddance.data.names import Strategy

if TYPE_CHECKING:
    from rewarddance.core.types import RewardModel
    from rewarddance.data.votes import VotedRecord

PLACED = 200
"""Pairs that get a place in one order. If people judge all of them before the next order, the others come at random."""
MAX_PER_PROMPT = 4
"""Largest number of these pairs with the same prompt, as long as other prompts have pairs."""
ASKED = 4000
"""Largest number of pairs that judges are asked about for one order. If more are open, prompts are drawn at random."""
SPARE_MINUTES = 10.0
"""An order is kept for two intervals and this time, in which judges are loaded and asked."""
Judges = Mapping[str, "RewardModel"]


def open_items(database: Database, config: DeskConfig, now: float) -> dict[int, list[tuple[int, int, int]]]:
    """The pairs that still need judgements: number of the record -> (item, first, second)."""
    taken = select(Assignment.item_id, taken_by(now).label("num")).join(Person).group_by(Assignment.item_id).subquery()
    query = (
        select(Item.id, Item.record_id, Item.members)
        .outerjoin(taken, taken.c.item_id == Item.id)
        .where(Item.noise.is_(None), func.coalesce(taken.c.num, 0) < config.judgements)
        .order_by(Item.id)
    )
    found: dict[int, list[tuple[int, int, int]]] = {}
    with database.read() as session:
        for item, record, (first, second) in session.execute(query):
            found.setdefault(record, []).append((item, first, second))
    return found


def order(
    database: Database,
    judges: Judges,
    strategy: Strategy,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
    owner: Owner | None = None,
) -> int:
    """Ask judges about the pairs that still need judgements, by the first criterion. The most useful pairs get places.

    Pairs that a judge refuses get no place: a judge of pictures refuses clips.

    Args:
        stop: called before each record; True ends the order without a change.
        owner: the server that orders. None: the order has no lease.

    Returns:
        How many pairs have a place.
    """
    from rewarddance.jobs.data.select import Pair, ask_all

    with database.read() as session:
        config = settings_of(session)
    pairs: dict[str, list[tuple[int, int, int]]] = {}
    now = time.time()

    def records() -> Iterator[VotedRecord]:
        found = open_items(database, config, now)
        numbers, num = list(found), 0
        for i in stream(seed, "order", int(now)).permutation(len(numbers)):
            number, items = numbers[i], found[numbers[i]]
            if stop() or num >= ASKED:
                return
            with database.read() as session:
                record = voted_record(session, number)
            pairs[record.record_id] = items[: ASKED - num]
            num += len(pairs[record.record_id])
            yield record

    def pairs_of(record: VotedRecord) -> list[Pair]:
        return [Pair(record, first, second) for _, first, second in pairs[record.record_id]]

    asked = ask_all(records(), pairs_of, judges, config.asked[0], strategy, clips=True)
    if stop():
        return 0
    numbers = {(name, i, j): item for name, items in pairs.items() for item, i, j in items}
    chosen = [asked.pairs[i] for i in asked.most_wanted(strategy, PLACED, MAX_PER_PROMPT, seed)]
    with database.write() as session:
        lock_desk(session)
        _forget(session)
        _own(session, owner)
        for place, pair in enumerate(chosen):
            item = numbers[pair.record.record_id, pair.first, pair.second]
            session.execute(update(Item).where(Item.id == item).values(place=place))
    return len(chosen)


@dataclass(frozen=True)
class Owner:
    """A server that orders the pairs.

    Attributes:
        name: random. seconds: the lease of an order, which the server renews.
    """

    name: str
    seconds: float

    @classmethod
    def new(cls, minutes: float) -> Owner:
        """A server that orders every `minutes`."""
        return cls(secrets.token_hex(8), 60 * (2 * minutes + SPARE_MINUTES))


def _own(session: Session, owner: Owner | None) -> None:
    until = None if owner is None else time.time() + owner.seconds
    session.execute(update(Desk).values(order_owner=owner and owner.name, order_until=until))


def _renew(database: Database, owner: Owner) -> None:
    """Keep an order for as long again, if it is still this server's."""
    with database.write() as session:
        own = Desk.order_owner == owner.name
        session.execute(update(Desk).where(own).values(order_until=time.time() + owner.seconds))


def forget_order(database: Database, owner: Owner | None = None) -> bool:
    """Remove the places of all pairs, so that all come in random order. Returns whether it did.

    Args:
        owner: whose order is removed. None: only an order without a lease, or whose lease has expired (its server was
            killed).
    """
    with database.write() as session:
        lock_desk(session)
        desk = session.scalars(select(Desk)).one()
        if owner is None:
            mine = desk.order_until is None or desk.order_until < time.time()
        else:
            mine = desk.order_owner == owner.name
        if mine:
            _forget(session)
            _own(session, None)
        return mine


def _forget(session: Session) -> None:
    session.execute(update(Item).where(Item.place.is_not(None)).values(place=None))


@contextmanager
def kept_in_order(
    database: Database, load: Callable[[], Judges], strategy: Strategy, minutes: float, seed: int = 0
) -> Iterator[None]:
    """Order the open pairs in a thread: at once, and then every `minutes`. At the end the order is random again, unless
    another server has made an order since.

    Args:
        load: gives the judges. It is called before every order, so that a new version of a judge is used.
    """
    judges, stop, owner = load(), threading.Event(), Owner.new(minutes)

    def work(judges: Judges) -> None:
        while True:
            try:
                num = order(database, judges, strategy, seed, stop.is_set, owner)
                if stop.is_set():
                    return
                by = f" of {', '.join(judges)}" if judges else ""
                say(f"{num} pairs come first, chosen by {strategy}{by}")
            except Exception as error:  # the desk must go on after any error of a judge; the next order may work
                say(f"the pairs keep their old order: {type(error).__name__}: {error}")
                with suppress(Exception):  # the database may be what failed
                    _renew(database, owner)
            if stop.wait(60 * minutes):
                return
            try:
                judges = load()
            except Exception as error:
                say(f"the judges were not loaded again; the earlier ones are used: {type(error).__name__}: {error}")

    thread = threading.Thread(target=work, args=(judges,), name="order of pairs")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        try:
            forget_order(database, owner)
        except Exception as error:  # the server stops in any case, and the order ends by itself
            say(f"the order of this server was not removed: {type(error).__name__}: {error}")
