"""Which open pairs people see first: the rule of `data select`, with judges that are asked again while people work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.database import Database, lock_desk
from rewarddance.apps.annotate.export import voted_record
from rewarddance.apps.annotate.filling import settings_of
from rewarddance.apps.annotate.judging import taken_by
from rewarddance.apps.annotate.models import Assignment, Item, Person, Record
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
    database: Database, judges: Judges, strategy: Strategy, seed: int = 0, stop: Callable[[], bool] = lambda: False
) -> int:
    """Ask judges about the pairs that still need judgements, by the first criterion. The most useful pairs get places.

    Pairs of clips get no place. Judges are asked about `ASKED` pairs at most.

    Args:
        stop: called before each record; True ends the order without a change.

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
                if any(session.get_one(Record, number).facts.get("clips", ())):
                    continue
                record = voted_record(session, number)
            pairs[record.record_id] = items[: ASKED - num]
            num += len(pairs[record.record_id])
            yield record

    def pairs_of(record: VotedRecord) -> list[Pair]:
        return [Pair(record, first, second) for _, first, second in pairs[record.record_id]]

    asked = ask_all(records(), pairs_of, judges, config.asked[0], strategy)
    if stop():
        return 0
    numbers = {(name, i, j): item for name, items in pairs.items() for item, i, j in items}
    chosen = [asked.pairs[i] for i in asked.most_wanted(strategy, PLACED, MAX_PER_PROMPT, seed)]
    with database.write() as session:
        lock_desk(session)
        _forget(session)
        for place, pair in enumerate(chosen):
            item = numbers[pair.record.record_id, pair.first, pair.second]
            session.execute(update(Item).where(Item.id == item).values(place=place))
    return len(chosen)


def forget_order(database: Database) -> None:
    """Remove the places of all pairs, so that all come in random order."""
    with database.write() as session:
        lock_desk(session)
        _forget(session)


def _forget(session: Session) -> None:
    session.execute(update(Item).where(Item.place.is_not(None)).values(place=None))


@contextmanager
def kept_in_order(
    database: Database, load: Callable[[], Judges], strategy: Strategy, minutes: float, seed: int = 0
) -> Iterator[None]:
    """Order the open pairs in a thread: at once, and then every `minutes`.

    Args:
        load: gives the judges. It is called before every order, so that a new version of a judge is used.
    """
    judges, stop = load(), threading.Event()

    def work(judges: Judges) -> None:
        while True:
            try:
                num = order(database, judges, strategy, seed, stop.is_set)
                by = f" of {', '.join(judges)}" if judges else ""
                say(f"{num} pairs come first, chosen by {strategy}{by}")
            except Exception as error:  # the desk must go on after any error of a judge; the next order may work
                say(f"the pairs keep their old order: {type(error).__name__}: {error}")
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
