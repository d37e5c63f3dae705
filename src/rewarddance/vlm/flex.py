"""Tree attention on CUDA: one compiled `flex_attention` kernel over the whole row of a packed tree.

The nodes lie in depth-first order, so the descendants of a node follow it directly. Token q attends to token k
where k <= q < leave[k], with leave[k] the end of the last descendant of k's node. The mask over blocks of tokens
follows from these intervals; no mask over all pairs of tokens is built.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
"""Tokens in a block of the mask."""


def block_mask(leave: NDArray[np.int64], device: torch.device) -> BlockMask:
    """The mask of a depth-first row of T tokens.

    Args:
        leave: (T,), the end of the last descendant of each token's node.
    """
    size = len(leave)
    num = -(-size // BLOCK)
    most = np.pad(leave, (0, num * BLOCK - size)).reshape(num, BLOCK).max(1)
    least = np.pad(leave, (0, num * BLOCK - size), constant_values=num * BLOCK).reshape(num, BLOCK).min(1)
    starts = np.arange(num) * BLOCK
    before = starts[:, None] > starts[None]
    some = before & (most[None] > starts[:, None])  # a token of block k is visible from the first token of block q
    full = some & (least[None] >= np.minimum(starts[:, None] + BLOCK, size))  # every token, from every token
    partial = (some & ~full) | np.eye(num, dtype=bool)
    (few, which), (all_few, all_which) = _listed(partial, device), _listed(full, device)
    ends = torch.from_numpy(leave).to(device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    return BlockMask.from_kv_blocks(
        few, which, all_few, all_which, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(size, size)
    )


def _listed(blocks: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """For every row of blocks the number of True entries, and the columns with these first: (1, 1, N), (1, 1, N, N)."""
    columns = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    num = blocks.sum(1).astype(np.int32)
    return torch.from_numpy(num).to(device)[None, None], torch.from_numpy(columns).to(device)[None, None]


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


class _Keeps(torch.autograd.Function):
    """Shapes of the kernel, and the tensors for its backward pass: inputs, output and a sum for every row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:-1], device=query.device))
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def flex_tree_attention(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    """Attention of every token to itself and its ancestors.

    On a CPU, where flex attention has no gradients, it is dense attention with the whole mask, for tests. On the meta
    device, where memory is planned, autograd keeps the same tensors as the kernel.

    Args:
        query: (1, heads, T, d); key, value: (1, key-value heads, T, d).

    Returns:
        (1, T, heads, d).
    """
    grouped = query.shape[1] != key.shape[1]
    if query.is_cuda:
        attend = flex_attention if torch.compiler.is_compiling() else _compiled()
        out: Tensor = attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2)
    if query.is_meta:
        return _Keeps.apply(query, key, value)  # type: ignore[no-any-return,no-untyped-call]
    at = torch.arange(query.shape[2], device=query.device)
    whole = mask.mask_mod(at[:1], at[:1], at[:, None], at[None])
    dense = F.scaled_dot_product_attention(query, key, value, attn_mask=whole, scale=scale, enable_gqa=grouped)
    return dense.transpose(1, 2)
