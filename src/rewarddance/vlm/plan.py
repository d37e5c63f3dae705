"""Sequences to a tree of shared prefixes, so that every shared token is processed once. Pure functions, no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Key = tuple[int, ...]
"""One integer a token; tokens of a picture carry the picture's identity, so equal keys mean equal computation."""


@dataclass(frozen=True)
class Node:
    """A run of tokens that some sequences share: tokens start..stop-1 of the sequence `member`.

    Attributes:
        parent: index of the node before it, -1 for a root; parents come first.
    """

    parent: int
    start: int
    stop: int
    member: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Tree:
    """All sequences of a batch.

    Attributes:
        ends: for every sequence, the node that it ends with.
    """

    nodes: tuple[Node, ...]
    ends: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(n.length for n in self.nodes)

    def path(self, node: int) -> list[int]:
        """Ancestors of a node, the root first, itself not among them."""
        found = []
        while (node := self.nodes[node].parent) >= 0:
            found.append(node)
        return found[::-1]


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


def grow(keys: Sequence[Key]) -> Tree:
    """The smallest tree of distinct sequences in ascending order.

    >>> grow([(1, 2, 3, 4), (1, 2, 3, 5), (9, 9)]).nodes
    (Node(parent=-1, start=0, stop=3, member=0), Node(parent=0, start=3, stop=4, member=0), \
Node(parent=0, start=3, stop=4, member=1), Node(parent=-1, start=0, stop=2, member=2))
    """
    sharing = [common_prefix(a, b) for a, b in itertools.pairwise(keys)]
    nodes: list[Node] = []
    ends = [-1] * len(keys)

    def add(parent: int, start: int, stop: int, member: int) -> int:
        if stop == start:
            return parent
        nodes.append(Node(parent, start, stop, member))
        return len(nodes) - 1

    waiting = [(0, len(keys), 0, -1)]  # (first, last + 1, tokens that are placed already, node that they end with)
    while waiting:
        first, stop, depth, parent = waiting.pop()
        if stop - first == 1:
            ends[first] = add(parent, depth, len(keys[first]), first)
            continue
        least = min(sharing[first : stop - 1])
        node = add(parent, depth, least, first)
        cuts = [i + 1 for i in range(first, stop - 1) if sharing[i] == least]
        parts = list(zip([first, *cuts], [*cuts, stop], strict=True))
        waiting += [(low, high, least, node) for low, high in reversed(parts)]
    return Tree(tuple(nodes), tuple(ends))


def batches(keys: Sequence[Key], budget: int) -> list[range]:
    """Neighbours in a sorted list whose trees hold at most `budget` tokens.

    One sequence at least, and what branches from it while that is less than half of it: or a prefix as long as the
    budget would be read again for every question behind it.
    """
    found: list[range] = []
    first = tokens = 0
    for i, key in enumerate(keys):
        more = len(key) - (common_prefix(keys[i - 1], key) if i > first else 0)
        if i > first and tokens + more > max(budget, len(keys[first]) * 3 // 2):
            found.append(range(first, i))
            first, more, tokens = i, len(key), 0
        tokens += more
    return [*found, range(first, len(keys))]


def shares(sizes: Sequence[int], budget: int, most: int) -> list[range]:
    """Neighbours of at most `budget` together and at most `most` in number (one at least).

    >>> shares([4, 4, 4, 20, 1, 1, 1], 8, 2)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 6), range(6, 7)]
    """
    found: list[range] = []
    first = total = 0
    for i, size in enumerate(sizes):
        if i > first and (total + size > budget or i - first == most):
            found.append(range(first, i))
            first, total = i, 0
        total += size
    return [*found, range(first, len(sizes))]


@dataclass(frozen=True)
class Bucket:
    """Nodes that attention treats alike: `rows` families of `siblings` nodes of at most `length` tokens each.

    Attributes:
        nodes: rows * siblings of them, family by family.
        parents: the node that each family descends from, -1 for none.
    """

    siblings: int
    length: int
    nodes: tuple[int, ...]
    parents: tuple[int, ...]


MAX_SIBLINGS = 32
FEW = 12
"""Up to this many different lengths are kept apart; of more, those between two multiples of `STEP` go together."""
STEP = 8


def bucketed(tree: Tree) -> list[Bucket]:
    """Nodes by family size and length, which is rounded up where there are many; parents need not come first."""
    step = 1 if len({n.length for n in tree.nodes}) <= FEW else STEP
    families: dict[tuple[int, int], list[int]] = {}
    for i, n in enumerate(tree.nodes):
        families.setdefault((n.parent, -(-n.length // step) * step), []).append(i)
    found: dict[tuple[int, int, bool], list[tuple[int, list[int]]]] = {}
    for (parent, length), members in families.items():
        for part in _parts(members):
            found.setdefault((len(part), length, parent >= 0), []).append((parent, part))
    return [
        Bucket(m, length, tuple(itertools.chain.from_iterable(part for _, part in rows)), tuple(p for p, _ in rows))
        for (m, length, _), rows in sorted(found.items())
    ]


def _parts(members: list[int]) -> Iterable[list[int]]:
    return (members[i : i + MAX_SIBLINGS] for i in range(0, len(members), MAX_SIBLINGS))
