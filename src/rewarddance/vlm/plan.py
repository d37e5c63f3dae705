"""Which dialogs share which prefix: a two-level schedule that processes the fewest tokens. Pure functions, no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

Key = tuple[int, ...]
"""One integer a token; tokens of a picture carry the picture's identity, so equal keys mean equal computation."""


@dataclass(frozen=True)
class Group:
    """Dialogs `members` (indices into the input) whose first `shared` tokens are computed once."""

    shared: int
    members: tuple[int, ...]


def common_prefix(a: Key, b: Key) -> int:
    """Length of the longest common prefix.

    >>> common_prefix((1, 2, 3), (1, 2, 4, 5))
    2
    """
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n  # invariant: a[:low] == b[:low], a[:high] != b[:high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


def group_by_prefix(keys: Sequence[Key]) -> list[Group]:
    """Partition sequences so that the sum of `shared + sum(len - shared)` over groups is least.

    At least one token of every sequence stays in its own suffix, because the answer is read there. Least, that is,
    when sequences differ and none is the beginning of another, as holds for dialogs: all end with the end of a turn.

    >>> group_by_prefix([(1, 2, 3, 4), (9, 9), (1, 2, 3, 5)])
    [Group(shared=3, members=(0, 2)), Group(shared=0, members=(1,))]
    """
    order = sorted(range(len(keys)), key=lambda i: keys[i])
    # sharing[i]: tokens that neighbours order[i] and order[i + 1] may share
    sharing = [
        min(common_prefix(keys[a], keys[b]), len(keys[a]) - 1, len(keys[b]) - 1) for a, b in itertools.pairwise(order)
    ]
    saved: dict[tuple[int, int, int], int] = {}
    groups, loose = _groups(sharing, 0, len(order), 0, saved)
    found = [*groups, *((0, [i]) for i in loose)]
    return [Group(shared, tuple(order[i] for i in places)) for shared, places in found]


def _parts(sharing: Sequence[int], start: int, stop: int) -> tuple[int, list[tuple[int, int]]]:
    """The prefix that all of order[start:stop] share, and the ranges that share more."""
    least = min(sharing[start : stop - 1])
    cuts = [i + 1 for i in range(start, stop - 1) if sharing[i] == least]
    return least, list(zip([start, *cuts], [*cuts, stop], strict=True))


def _saving(sharing: Sequence[int], start: int, stop: int, above: int, known: dict[tuple[int, int, int], int]) -> int:
    """Most tokens that order[start:stop] can save when each of them may join an open group sharing `above` tokens."""
    if stop - start == 1:
        return above
    key = (start, stop, above)
    if key not in known:
        least, parts = _parts(sharing, start, stop)
        own = sum(_saving(sharing, low, high, least, known) for low, high in parts) - least
        known[key] = max(own, sum(_saving(sharing, low, high, above, known) for low, high in parts))
    return known[key]


def _groups(
    sharing: Sequence[int], start: int, stop: int, above: int, known: dict[tuple[int, int, int], int]
) -> tuple[list[tuple[int, list[int]]], list[int]]:
    """The groups behind `_saving`, as (shared, places), and the places left to the group above."""
    if stop - start <= 1:
        return [], list(range(start, stop))
    least, parts = _parts(sharing, start, stop)
    passed = sum(_saving(sharing, low, high, above, known) for low, high in parts)
    opens = sum(_saving(sharing, low, high, least, known) for low, high in parts) - least > passed
    found = [_groups(sharing, low, high, least if opens else above, known) for low, high in parts]
    groups, loose = [g for part, _ in found for g in part], [i for _, part in found for i in part]
    if opens:
        return [*groups, (least, loose)], []
    return groups, loose


def pack(groups: Sequence[Group], lengths: Sequence[int], budget: int) -> list[list[Group]]:
    """Batches of groups, long suffixes together, whose padded tokens stay within `budget` (one group at least).

    A group larger than the budget is split; its prefix is then computed once a part.

    Args:
        lengths: full length of every sequence.
        budget: tokens, prefix and suffix rows counted with their padding.
    """
    pieces: list[tuple[int, int, Group]] = []
    for g in groups:
        longest = max(lengths[m] for m in g.members) - g.shared
        fit = max(1, (budget - g.shared) // max(1, longest + g.shared // 4))
        for i in range(0, len(g.members), fit):
            part = g.members[i : i + fit]
            pieces.append((longest, g.shared, Group(g.shared, part)))
    pieces.sort(key=lambda p: (p[0], p[1], p[2].members))
    batches: list[list[Group]] = []
    rows = widest = prefix = 0
    for longest, shared, g in pieces:
        wide, deep = max(widest, longest), max(prefix, shared)
        cost = (rows + len(g.members)) * wide + (len(batches[-1]) + 1 if batches else 1) * deep
        if batches and rows and cost <= budget:
            batches[-1].append(g)
            rows, widest, prefix = rows + len(g.members), wide, deep
        else:
            batches.append([g])
            rows, widest, prefix = len(g.members), longest, shared
    return batches
