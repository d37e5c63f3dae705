"""From sequences to a tree of shared prefixes, so that every shared token is processed once. Pure functions, no
torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Key = tuple[int, ...]
"""A sequence as units: a token id for a token, a negative number that identifies the picture for a whole picture. Equal
keys mean equal computation."""
Offsets = Sequence[int]
"""For every unit of a sequence the number of tokens before it, and the length in tokens at the end."""


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


def build_tree(keys: Sequence[Key], offsets: Sequence[Offsets] | None = None) -> Tree:
    """The smallest tree of sequences, which must be distinct and sorted. Its nodes are in depth-first order.

    Args:
        offsets: of every sequence; without them every unit is one token.

    >>> build_tree([(1, 2, 3, 4), (1, 2, 3, 5), (9, 9)]).nodes
    (Node(parent=-1, start=0, stop=3, member=0), Node(parent=0, start=3, stop=4, member=0), \
Node(parent=0, start=3, stop=4, member=1), Node(parent=-1, start=0, stop=2, member=2))
    """
    at = offsets or [range(len(k) + 1) for k in keys]
    sharing = [common_prefix(a, b) for a, b in itertools.pairwise(keys)]
    nodes: list[Node] = []
    ends = [-1] * len(keys)

    def add(parent: int, start: int, stop: int, member: int) -> int:
        if stop == start:
            return parent
        nodes.append(Node(parent, at[member][start], at[member][stop], member))
        return len(nodes) - 1

    waiting = [(0, len(keys), 0, -1)]  # (first, last + 1, number of units already in nodes, the node they end with)
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


def batches(keys: Sequence[Key], budget: int, offsets: Sequence[Offsets] | None = None) -> list[range]:
    """Cut a sorted list into ranges whose trees hold at most `budget` tokens.

    A range holds one sequence at least, and its branches as long as they are shorter than half of it. Otherwise a
    prefix as long as the budget would be computed again for every question behind it.
    """
    at = offsets or [range(len(k) + 1) for k in keys]
    ranges: list[range] = []
    first = tokens = 0
    for i, key in enumerate(keys):
        shared = common_prefix(keys[i - 1], key) if i > first else 0
        more = at[i][-1] - at[i][shared]
        if i > first and tokens + more > max(budget, at[first][-1] * 3 // 2):
            ranges.append(range(first, i))
            first, more, tokens = i, at[i][-1], 0
        tokens += more
    return [*ranges, range(first, len(keys))]


def shares(sizes: Sequence[int], budget: int, most: int) -> list[range]:
    """Cut a list into ranges of at most `most` items whose sizes add up to at most `budget` (one item at least).

    >>> shares([4, 4, 4, 20, 1, 1, 1], 8, 2)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 6), range(6, 7)]
    """
    ranges: list[range] = []
    first = total = 0
    for i, size in enumerate(sizes):
        if i > first and (total + size > budget or i - first == most):
            ranges.append(range(first, i))
            first, total = i, 0
        total += size
    return [*ranges, range(first, len(sizes))]


@dataclass(frozen=True)
class Bucket:
    """Nodes that attention processes together: families of `siblings` nodes with at most `length` tokens each.

    Attributes:
        nodes: indices of the nodes, family by family.
        parents: the parent node of each family, -1 for none.
    """

    siblings: int
    length: int
    nodes: tuple[int, ...]
    parents: tuple[int, ...]


MAX_SIBLINGS = 32
FEW = 12
"""Up to this many different lengths have buckets of their own. If there are more, lengths are rounded up to multiples
of `STEP`."""
STEP = 8


def bucketed(tree: Tree) -> list[Bucket]:
    """Nodes by family size and rounded length. A parent's bucket may come after its children's."""
    step = 1 if len({n.length for n in tree.nodes}) <= FEW else STEP
    families: dict[tuple[int, int], list[int]] = {}
    for i, n in enumerate(tree.nodes):
        families.setdefault((n.parent, -(-n.length // step) * step), []).append(i)
    buckets: dict[tuple[int, int, bool], list[tuple[int, list[int]]]] = {}
    for (parent, length), members in families.items():
        for part in _parts(members):
            buckets.setdefault((len(part), length, parent >= 0), []).append((parent, part))
    return [
        Bucket(m, length, tuple(itertools.chain.from_iterable(part for _, part in rows)), tuple(p for p, _ in rows))
        for (m, length, _), rows in sorted(buckets.items())
    ]


def _parts(members: list[int]) -> Iterable[list[int]]:
    return (members[i : i + MAX_SIBLINGS] for i in range(0, len(members), MAX_SIBLINGS))
