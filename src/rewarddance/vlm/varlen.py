"""Tree attention on CUDA in half precision: one call of torch's varlen flash attention over the nodes of a packed tree.

A node is a sequence of that call: its queries are its own tokens, its keys are the tokens of its ancestors and its own.
Keys and values are gathered, so those of a shared prefix are copied for every node behind it. All other work on a
prefix is still done once. The kernel's causal mask is aligned to the end of the keys, so a query sees all ancestors.

No command turns it on, because its speed and its compiled training are not measured yet. `backbone.prefers_varlen =
True` turns it on in a program, and `REWARDDANCE_VARLEN=1` in `benchmarks/gpu.py`. Tests compare its answers and
gradients (`tests/vlm/test_flex.py` on a CPU, `tests/test_gpu.py` on a GPU).

Shapes: T packed tokens, N nodes, K keys of all nodes, H heads, d width of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

COPIES = 8
"""Where all nodes together have more keys than this many times their tokens, flex attention takes the row (`flex.py`).
It copies no keys."""
ROUNDED = 256
"""The longest lengths are rounded up to multiples of this, so that compiled layers have few variants."""


@dataclass(frozen=True)
class Segments:
    """Which keys every node attends to.

    Attributes:
        keys: packed positions of the keys of all nodes, node by node, (K,).
        queries_upto: number of tokens before each node, (N + 1,) int32; keys_upto: number of keys before each node.
        most_queries, most_keys: at least the largest number of tokens and of keys of a node.
    """

    keys: Tensor
    queries_upto: Tensor
    keys_upto: Tensor
    most_queries: int
    most_keys: int


def is_available(dtype: torch.dtype, head_width: int) -> bool:
    """Whether torch's kernel takes heads of this width and type."""
    return bool(CAUSAL) and dtype in (torch.bfloat16, torch.float16) and head_width % 8 == 0 and head_width <= 256


def _arguments() -> dict[str, Any]:
    """What asks this torch for causal attention with grouped heads; empty where it has no such function."""
    if varlen_attn is None:
        return {}
    known = inspect.signature(varlen_attn).parameters
    if not {"window_size", "scale"} <= known.keys():
        return {}
    return {"window_size": (-1, 0), **({"enable_gqa": True} if "enable_gqa" in known else {})}


CAUSAL = _arguments()


def segments(
    first: Sequence[int], lengths: NDArray[np.int64], parents: Sequence[int], device: torch.device
) -> Segments:
    """The segments of a tree in depth-first order.

    Args:
        first: packed position of every node's first token; parents: the parent of every node, -1 for none.
    """
    keys: list[NDArray[np.int64]] = []
    for start, length, parent in zip(first, lengths, parents, strict=True):
        own = np.arange(start, start + length)
        keys.append(own if parent < 0 else np.concatenate([keys[parent], own]))
    numbers = np.array([len(k) for k in keys])
    queries_upto, keys_upto = (np.concatenate([[0], np.cumsum(x)]).astype(np.int32) for x in (lengths, numbers))
    most_queries, most_keys = (int(-(-x.max() // ROUNDED) * ROUNDED) for x in (lengths, numbers))
    rows, queries, ends = (torch.from_numpy(x).to(device) for x in (np.concatenate(keys), queries_upto, keys_upto))
    return Segments(rows, queries, ends, most_queries, most_keys)


def varlen_tree_attention(query: Tensor, key: Tensor, value: Tensor, nodes: Segments, scale: float | None) -> Tensor:
    """Attention of every token to itself and its ancestors.

    On a CPU it is one dense attention for each node, for tests.

    Args:
        query: (1, H, T, d); key, value: (1, key-value heads, T, d).

    Returns:
        (1, T, H, d).
    """
    queries = query[0].transpose(0, 1)
    keys, values = _gathered(key, nodes.keys), _gathered(value, nodes.keys)
    if query.is_cuda:
        limits = nodes.queries_upto, nodes.keys_upto, nodes.most_queries, nodes.most_keys
        out: Tensor = varlen_attn(queries, keys, values, *limits, scale=scale, **CAUSAL)  # type: ignore[assignment]
        return out[None]
    grouped = query.shape[1] != key.shape[1]
    rows = []
    bounds = zip(
        *(torch.stack([u[:-1], u[1:]], 1).tolist() for u in (nodes.queries_upto, nodes.keys_upto)), strict=True
    )
    for (q0, q1), (k0, k1) in bounds:
        q, k, v = (x.transpose(0, 1)[None] for x in (queries[q0:q1], keys[k0:k1], values[k0:k1]))
        seen = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(k1 - k0 - (q1 - q0))
        rows.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=grouped)[0])
    return torch.cat(rows, 1).transpose(0, 1)[None]


def _gathered(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (K, heads, d) of keys or values (1, heads, T, d). The gradients of copies are summed in fp32."""
    flat = x[0].transpose(0, 1)
    if torch.is_grad_enabled() and x.requires_grad:
        return flat.float().index_select(0, rows).to(x.dtype)
    return flat.index_select(0, rows)
