"""Long lists of dialogs in portions, so that only the pictures and tokens of one portion are in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewarddance.core.media import Dialog, Media


@dataclass(frozen=True)
class Portion:
    """Dialogs that are processed together.

    Attributes:
        rows: indices into the list.
        needed_later: names of images, shown so far, whose tokens are kept because a later portion shows them too. If
            they do not all fit, those are kept that are needed for the last time soonest; the others are encoded again.
    """

    rows: list[int]
    needed_later: frozenset[Any]


def portions(
    dialogs: Sequence[Dialog], most: int, tokens: Callable[[Media], Mapping[Any, int]], room: int
) -> Iterator[Portion]:
    """Cut a list into portions of at most `most` dialogs. Dialogs that begin alike stand together.

    Args:
        tokens: number of image tokens of every image of a picture or clip, by name.
        room: image tokens of a portion at most (a single dialog may show more), and as many again kept for later.
    """
    order = sorted(range(len(dialogs)), key=lambda i: [p.key if isinstance(p, Media) else str(p) for p in dialogs[i]])
    pictures = [{k: n for p in d if isinstance(p, Media) for k, n in tokens(p).items()} for d in dialogs]
    cuts, shown, taken = [0], set[Any](), 0
    last_portion: dict[Any, int] = {}
    for place, i in enumerate(order):
        new = {k: n for k, n in pictures[i].items() if k not in shown}
        if place > cuts[-1] and (place - cuts[-1] == most or taken + sum(new.values()) > room):
            cuts.append(place)
            new, shown, taken = pictures[i], set(), 0
        shown |= new.keys()
        taken += sum(new.values())
        last_portion.update(dict.fromkeys(pictures[i], len(cuts) - 1))
    held = dict[Any, int]()
    for number, (start, stop) in enumerate(zip(cuts, [*cuts[1:], len(dialogs)], strict=True)):
        rows = order[start:stop]
        for i in rows:
            held |= pictures[i]
        later = {k: held[k] for k in sorted(held, key=last_portion.__getitem__) if last_portion[k] > number}
        held = _first_that_fit(later, room)
        yield Portion(rows, frozenset(held))


def _first_that_fit(sizes: dict[Any, int], room: int) -> dict[Any, int]:
    """The first entries whose sizes fit together."""
    sums = itertools.accumulate(sizes.values())
    return {k: n for (k, n), total in zip(sizes.items(), sums, strict=True) if total <= room}
