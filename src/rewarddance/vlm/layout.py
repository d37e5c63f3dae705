"""Lays a tree of sequences into one row of tokens, and makes the masks that the attention kernels take.

On a CPU the nodes lie bucket by bucket (`plan.bucketed`), and attention takes one bucket after the other. On CUDA they
lie in depth-first order, and one kernel takes the whole row: flash attention with a segment for each node
(`varlen.py`), or flex attention with a block mask (`flex.py`). `lay_out` makes any of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from rewarddance.vlm.flex import block_mask
from rewarddance.vlm.plan import Bucket, Tree, bucketed
from rewarddance.vlm.varlen import COPIES, Segments, segments

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """A bucket as tensors. G families of m siblings, L tokens a node, P tokens of ancestors.

    Attributes:
        start: first packed position of the bucket's tokens; `stop` is the last plus one.
        families, siblings, length: G, m and L.
        prefix: packed positions of the ancestors' tokens, (G, P), padded with 0; None for roots.
        blocked: True where `prefix` is padding, (G, P); None if nothing is padded.
        upto: number of tokens in all families before each family, (G + 1,).
        spread: packed positions in the shape (G, m, L), where a shorter node repeats its last token; None if all nodes
            are L tokens long.
        kept: which of the G * m * L positions are nodes' own tokens, ascending; None without `spread`.
    """

    start: int
    families: int
    siblings: int
    length: int
    prefix: Tensor | None
    blocked: Tensor | None
    upto: tuple[int, ...]
    spread: Tensor | None = None
    kept: Tensor | None = None

    @property
    def stop(self) -> int:
        return self.start + self.upto[-1] - self.upto[0]

    def part(self, low: int, high: int) -> Block:
        """The block of the families `low` to `high - 1`."""
        first, last = self.upto[low] - self.upto[0], self.upto[high] - self.upto[0]
        skipped = low * self.siblings * self.length
        return replace(
            self,
            start=self.start + first,
            families=high - low,
            prefix=None if self.prefix is None else self.prefix[low:high],
            blocked=None if self.blocked is None else self.blocked[low:high],
            upto=self.upto[low : high + 1],
            spread=None if self.spread is None else self.spread[low:high],
            kept=None if self.kept is None else self.kept[first:last] - skipped,
        )


Visible = tuple[Block, ...] | BlockMask | Segments
"""The tokens that every token may attend to."""


@dataclass(frozen=True)
class PackedTree:
    """A tree in one row, without padding.

    Attributes:
        order: the nodes in their order in the row.
        first: packed position of every node's first token, by node.
        visible: for the attention kernels.
    """

    tree: Tree
    order: tuple[int, ...]
    first: tuple[int, ...]
    visible: Visible

    def gather(self, of_sequence: Sequence[Ints]) -> Ints:
        """The row out of values of every sequence's tokens, (..., S) each: (..., T)."""
        nodes = (self.tree.nodes[i] for i in self.order)
        return np.concatenate([of_sequence[n.member][..., n.start : n.stop] for n in nodes], -1)

    def places(self, member: int, start: int) -> list[int]:
        """Packed positions of a sequence's tokens from `start` on."""
        end = self.tree.ends[member]
        positions: list[int] = []
        while end >= 0 and self.tree.nodes[end].stop > start:
            node = self.tree.nodes[end]
            low = max(start, node.start)
            positions = [*range(self.first[end] + low - node.start, self.first[end] + node.length), *positions]
            end = node.parent
        return positions


def on_device(arrays: Sequence[Ints], device: torch.device) -> list[Tensor]:
    """Integer arrays as tensors. On CUDA they travel in one copy that the host does not wait for."""
    if device.type != "cuda":
        return [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays]
    flat = torch.from_numpy(np.concatenate([a.ravel() for a in arrays])).pin_memory().to(device, non_blocking=True)
    parts = torch.split(flat, [a.size for a in arrays])
    return [part.view(a.shape) for part, a in zip(parts, arrays, strict=True)]


Kernel = Literal["buckets", "flex", "varlen"]
"""Which attention takes the row."""


def lay_out(tree: Tree, device: torch.device, kernel: Kernel = "buckets") -> PackedTree:
    """Pack a tree.

    Args:
        kernel: `varlen` becomes `flex` if the nodes have more than `COPIES` times as many keys as tokens.
    """
    if kernel != "buckets":
        lengths = np.array([n.length for n in tree.nodes])
        ends = np.cumsum(lengths)
        first = tuple(int(i) for i in ends - lengths)
        order = tuple(range(len(tree.nodes)))
        if kernel == "varlen" and sum(n.stop for n in tree.nodes) <= COPIES * tree.num_tokens:
            return PackedTree(tree, order, first, segments(first, lengths, [n.parent for n in tree.nodes], device))
        return PackedTree(tree, order, first, block_mask(_leave(tree, ends, lengths), device))
    buckets = bucketed(tree)
    order = tuple(itertools.chain.from_iterable(b.nodes for b in buckets))
    starts = list(itertools.accumulate((tree.nodes[i].length for i in order), initial=0))
    first_of = dict(zip(order, starts, strict=False))
    places = [np.arange(first_of[i], first_of[i] + n.length) for i, n in enumerate(tree.nodes)]
    before: dict[int, Ints] = {-1: np.zeros(0, np.int64)}
    for parent in dict.fromkeys(n.parent for n in tree.nodes if n.parent >= 0):
        before[parent] = np.concatenate([before[tree.nodes[parent].parent], places[parent]])
    blocks = tuple(_block(b, places, [before[p] for p in b.parents], device) for b in buckets)
    return PackedTree(tree, order, tuple(first_of[i] for i in range(len(tree.nodes))), blocks)


def _leave(tree: Tree, ends: Ints, lengths: Ints) -> Ints:
    """For every token of the depth-first row, where the last descendant of its node ends, (T,)."""
    leave = ends.tolist()
    for i in range(len(tree.nodes) - 1, 0, -1):
        parent = tree.nodes[i].parent
        if parent >= 0:
            leave[parent] = max(leave[parent], leave[i])
    return np.repeat(np.array(leave), lengths)


def _block(bucket: Bucket, places: Sequence[Ints], prefixes: Sequence[Ints], device: torch.device) -> Block:
    """One bucket as tensors.

    Args:
        places: packed positions of every node's tokens.
        prefixes: packed positions of the ancestors' tokens of each family.
    """
    shape = (len(bucket.parents), bucket.siblings, bucket.length)
    node_places = [places[i] for i in bucket.nodes]
    ends = [0, *itertools.accumulate(map(len, node_places))]
    upto = tuple(ends[:: bucket.siblings])
    prefix = blocked = spread = kept = None
    sizes = np.array([len(p) for p in prefixes])
    if (widest := int(sizes.max())) > 0:
        table = np.zeros((len(prefixes), widest), np.int64)
        for row, p in zip(table, prefixes, strict=True):
            row[: len(p)] = p
        prefix = torch.from_numpy(table).to(device)
        if sizes.min() < widest:
            blocked = torch.from_numpy(np.arange(widest) >= sizes[:, None]).to(device)
    if upto[-1] < math.prod(shape):
        lengths = np.array([len(p) for p in node_places])[:, None]
        starts = np.array([p[0] for p in node_places])[:, None]
        steps = np.arange(bucket.length)
        spread = torch.from_numpy(starts + np.minimum(steps, lengths - 1)).view(shape).to(device)
        kept = torch.from_numpy(np.flatnonzero(steps < lengths)).to(device)
    return Block(int(node_places[0][0]), shape[0], shape[1], shape[2], prefix, blocked, upto, spread, kept)
