"""Which item a person judges next, and on which side pictures are. Pure functions; `judging.py` applies them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.core.streams import stream

GAP = 8
"""Other items between an item and its repeat."""
Due = Literal["item", "check", "repeat"]


@dataclass(frozen=True)
class Load:
    """An item that a person has not seen.

    Attributes:
        taken: judgements of it, and leases that still run.
        place: its place in the order of `ordering.py`; None without one.
    """

    item: int
    taken: int
    place: int | None = None


def groups_of(num: int, config: DeskConfig, rng: random.Random) -> list[tuple[int, ...]]:
    """Which candidates of a record are judged together: all pairs (or `most_pairs` of them), each alone, or all."""
    if config.task == "rating":
        return [(i,) for i in range(num)]
    if num < 2:
        return []
    if config.task == "ranking":
        return [tuple(range(num))]
    pairs: list[tuple[int, ...]] = list(combinations(range(num), 2))
    most = config.most_pairs
    return pairs if most is None or most >= len(pairs) else sorted(rng.sample(pairs, most))


def due(config: DeskConfig, person: int, position: int) -> Due:
    """The kind of a person's item number `position` (from 0): an item that counts, a check, or a repeat.

    Checks are spread evenly: in every 1 / `checks` positions one is drawn. So are repeats. Both streams depend only on
    seed and person, so a reload changes nothing, and nobody can predict a check.
    """
    if _falls_due(config.checks, config.seed, "check", person, position):
        return "check"
    if position > GAP and _falls_due(config.repeats, config.seed, "repeat", person, position):
        return "repeat"
    return "item"


def _falls_due(share: float, seed: int, name: str, person: int, position: int) -> bool:
    if share <= 0:
        return False
    length = round(1 / share)
    block, place = divmod(position, length)
    return _drawn_place(length, seed, name, person, block) == place


@lru_cache(100_000)
def _drawn_place(length: int, seed: int, name: str, person: int, block: int) -> int:
    return int(stream(seed, name, person, block).integers(length))


@dataclass(frozen=True)
class Ahead:
    """What a person can still be given.

    Attributes:
        position: number of their next item.
        items: items that count and have room.
        checks: checks that they have not seen.
        done: items that count and that they judged.
        repeated: how many of these were shown again.
    """

    position: int
    items: int
    checks: int
    done: int
    repeated: int


def left_for(ahead: Ahead, config: DeskConfig, person: int) -> int:
    """How many items a person will still be given, checks and repeats among them, if nobody else takes any.

    The count falls by one at every answer, whatever its item was, so it does not tell checks and repeats from others.
    """
    position, items, checks, done, repeated = astuple(ahead)
    while True:
        kind = due(config, person, position)
        if kind == "check" and checks:
            checks -= 1
        elif kind == "repeat" and done - GAP > repeated:
            repeated += 1
        elif items:
            items -= 1
            done += 1
        else:
            return int(position - ahead.position)
        position += 1


def choose(loads: Sequence[Load], config: DeskConfig, rng: random.Random) -> int | None:
    """The item to judge next, or None if every item has its judgements.

    Items that have a place come first, in their order. Of the others, those with the fewest judgements come first, or
    with `whole_items_first` those with the most. Among equal items the choice is random, so that people who work at
    the same time seldom get the same item.
    """
    unfinished = [load for load in loads if load.taken < config.judgements]
    if not unfinished:
        return None
    placed = [(load.place, load.item) for load in unfinished if load.place is not None]
    if placed:
        return min(placed)[1]
    pick = max if config.whole_items_first else min
    best = pick(load.taken for load in unfinished)
    return rng.choice([load.item for load in unfinished if load.taken == best])


def choose_check(loads: Sequence[Load], rng: random.Random) -> int | None:
    """A check that the person has not seen, or None. Checks have no limit of judgements."""
    return rng.choice(loads).item if loads else None


def choose_repeat(done: Sequence[int], repeated: frozenset[int], rng: random.Random) -> int | None:
    """An item to show again: judged at least `GAP` items ago, and not repeated yet.

    Args:
        done: a person's items in the order of judging.
    """
    old = [item for item in done[: max(0, len(done) - GAP)] if item not in repeated]
    return rng.choice(old) if old else None


def sides(num: int, rng: random.Random) -> tuple[int, ...]:
    """A random order of `num` pictures, from left to right."""
    order = list(range(num))
    rng.shuffle(order)
    return tuple(order)


def turned(order: Sequence[int]) -> tuple[int, ...]:
    """The order of a repeat. The sides are exchanged, so that a favourite side contradicts the first answer."""
    return tuple(reversed(order))


def lease_until(now: float, config: DeskConfig) -> float:
    """When an item that is given out now becomes free again."""
    return now + 60 * config.lease_minutes
