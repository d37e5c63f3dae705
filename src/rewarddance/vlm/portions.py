"""Long lists of dialogs in portions, so that memory holds the pictures and tokens of one portion, not of all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rewarddance.core.media import Dialog, Media


@dataclass(frozen=True)
class Portion:
    """Dialogs that are asked together.

    Attributes:
        rows: which of the list; later: keys of pictures, shown by now, that a later portion shows too; of more than
        there is room for, those that are done with first. The others are looked at again.
    """

    rows: list[int]
    later: frozenset[str]


def portions(dialogs: Sequence[Dialog], most: int, tokens: Callable[[Media], int], room: int) -> Iterator[Portion]:
    """Neighbours of a list in which dialogs that begin alike stand together: `most` of them, or fewer.

    Args:
        tokens: how many a picture takes (all frames of a video); room: for the tokens of a portion's pictures, of which
            there may be more only where a single dialog shows more; and as many again that are kept for later.
    """
    begin_alike = sorted(range(len(dialogs)), key=lambda i: [p if isinstance(p, str) else p.key for p in dialogs[i]])
    cuts, shown, taken = [0], set[str](), 0
    last: dict[str, int] = {}  # the last portion that shows a picture
    for place, i in enumerate(begin_alike):
        new = {p.key: tokens(p) for p in dialogs[i] if not isinstance(p, str) and p.key not in shown}
        if place > cuts[-1] and (place - cuts[-1] == most or taken + sum(new.values()) > room):
            cuts.append(place)
            new = {p.key: tokens(p) for p in dialogs[i] if not isinstance(p, str)}
            shown, taken = set(), 0
        shown |= new.keys()
        taken += sum(new.values())
        last.update({p.key: len(cuts) - 1 for p in dialogs[i] if not isinstance(p, str)})
    held = dict[str, int]()
    for number, (start, stop) in enumerate(zip(cuts, [*cuts[1:], len(dialogs)], strict=True)):
        rows = begin_alike[start:stop]
        held |= {p.key: tokens(p) for i in rows for p in dialogs[i] if not isinstance(p, str)}
        held = _fitting({k: held[k] for k in sorted(held, key=last.__getitem__) if last[k] > number}, room)
        yield Portion(rows, frozenset(held))


def _fitting(sizes: dict[str, int], room: int) -> dict[str, int]:
    """The first ones that fit together."""
    sums = itertools.accumulate(sizes.values())
    return {k: n for (k, n), total in zip(sizes.items(), sums, strict=True) if total <= room}
