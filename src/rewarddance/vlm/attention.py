"""Attention over a packed tree: every node attends to its ancestors and to itself. No mask over all tokens is built.

All nodes of a batch lie in one row without padding, bucket by bucket (`plan.bucketed`). If the nodes of a bucket differ
in length, attention pads them; other layers do not. Siblings share one copy of their ancestors' keys, so a prefix costs
its own tokens once, however many sequences branch from it. The function is registered with transformers as an attention
implementation, so it works with every decoder that has standard attention.

Shapes: T packed tokens, G families of m siblings, L tokens a node, P tokens of ancestors, H key-value heads, R query
heads for each of them, d width of a head.
"""

from __future__ import annotations

import itertools
import math
import types
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rewarddance.vlm.plan import Bucket, Tree, bucketed

NAME = "rewarddance_tree"
"""Name of this attention in transformers' registry."""
DENSE_SCORES = 1 << 24
"""Attention scores of a bucket that are in memory at once; larger buckets are cut into parts."""
FUSED_FROM = 1024
"""Number of keys a query attends to from which torch's fused attention is used. It copies a prefix for every sibling,
but keeps no scores. It is also used where there are no siblings or no prefix, and on CUDA wherever gradients are kept,
since the backward pass would keep the scores of all layers."""


Before = tuple[Tensor, Tensor]
"""Keys and values of ancestors, (G, H, P, d) each."""


@dataclass(frozen=True)
class Block:
    """A bucket as tensors.

    Attributes:
        start: first packed position of the bucket's tokens; `stop` is the last plus one.
        families, siblings, length: G, m and L.
        prefix: packed positions of the ancestors' tokens, (G, P), padded with 0; None for roots.
        blocked: True where `prefix` is padding, (G, P); None where nothing is padded.
        upto: number of tokens in all families before each family, (G + 1,).
        spread: packed positions in the shape (G, m, L), where a shorter node repeats its last token; None where all
        nodes
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


@dataclass(frozen=True)
class PackedTree:
    """A tree in one row, without padding.

    Attributes:
        token_of: (sequence, index in the sequence) of every packed token.
        blocks: what attention processes one after the other.
        first: packed position of every node's first token, in the order of `Tree.nodes`.
    """

    token_of: tuple[tuple[int, int], ...]
    blocks: tuple[Block, ...]
    first: tuple[int, ...]

    def places(self, tree: Tree, member: int, start: int) -> list[int]:
        """PackedTree places of a sequence's tokens from `start` on."""
        end = tree.ends[member]
        found: list[int] = []
        while end >= 0 and tree.nodes[end].stop > start:
            node = tree.nodes[end]
            low = max(start, node.start)
            found = [*range(self.first[end] + low - node.start, self.first[end] + node.length), *found]
            end = node.parent
        return found


def lay_out(tree: Tree, device: torch.device) -> PackedTree:
    """PackedTree places of all tokens, and what each family attends to."""
    buckets = bucketed(tree)
    tokens: list[tuple[int, int]] = []
    first = [0] * len(tree.nodes)
    for i in itertools.chain.from_iterable(b.nodes for b in buckets):
        node = tree.nodes[i]
        first[i] = len(tokens)
        tokens += [(node.member, t) for t in range(node.start, node.stop)]
    places = [list(range(first[i], first[i] + n.length)) for i, n in enumerate(tree.nodes)]
    before: dict[int, list[int]] = {-1: []}
    for i, n in enumerate(tree.nodes):
        before[i] = before[n.parent] + places[i]
    blocks = [_laid_out(b, places, [before[p] for p in b.parents], device) for b in buckets]
    return PackedTree(tuple(tokens), tuple(blocks), tuple(first))


def _laid_out(bucket: Bucket, places: list[list[int]], prefixes: list[list[int]], device: torch.device) -> Block:
    """One bucket as tensors.

    Args:
        places: packed positions of every node's tokens.
        prefixes: packed positions of the ancestors' tokens of each family.
    """
    shape = (len(bucket.parents), bucket.siblings, bucket.length)
    own = [places[i] for i in bucket.nodes]
    ends = [0, *itertools.accumulate(map(len, own))]
    upto = tuple(ends[:: bucket.siblings])
    prefix = blocked = spread = kept = None
    if (widest := max(map(len, prefixes))) > 0:
        prefix = torch.tensor([[*p, *[0] * (widest - len(p))] for p in prefixes], device=device)
        sizes = torch.tensor([len(p) for p in prefixes])
        if int(sizes.min()) < widest:
            blocked = (torch.arange(widest) >= sizes[:, None]).to(device)
    if upto[-1] < math.prod(shape):
        rows = [[*p, *[p[-1]] * (bucket.length - len(p))] for p in own]
        spread = torch.tensor(rows, device=device).view(shape)
        starts = range(0, math.prod(shape), bucket.length)
        kept = torch.tensor([i + j for i, p in zip(starts, own, strict=True) for j in range(len(p))], device=device)
    return Block(own[0][0], shape[0], shape[1], shape[2], prefix, blocked, upto, spread, kept)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: PackedTree | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers. Without `tree` it is torch's scaled dot product attention.

    Args:
        query: (1, H * R, T, d); key, value: (1, H, T, d).

    Returns:
        (1, T, H * R, d).
    """
    if tree is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = query[0], key[0], value[0]
    parts = [_block(q, k, v, part, scale, dropout) for block in tree.blocks for part in _cut(block, q.shape[0])]
    return torch.cat(parts)[None], None


def _cut(block: Block, num_heads: int) -> list[Block]:
    """Parts of a block whose scores stay within `DENSE_SCORES`, by families."""
    keys = block.length + (0 if block.prefix is None else block.prefix.shape[1])
    each = num_heads * block.siblings * block.length * keys
    fit = max(1, DENSE_SCORES // each)
    if fit >= block.families:
        return [block]
    return [block.part(i, min(i + fit, block.families)) for i in range(0, block.families, fit)]


def _block(q: Tensor, k: Tensor, v: Tensor, block: Block, scale: float, dropout: float) -> Tensor:
    """Attention of one block, (its tokens, H * R, d).

    Args:
        q: (H * R, T, d); k, v: (H, T, d).
    """
    g, m, n = block.families, block.siblings, block.length
    heads, d = k.shape[0], k.shape[-1]
    r = q.shape[0] // heads
    # (H, R, G, m, L, d) -> (G, H, m, R, L, d): the query heads of a sibling lie together, as they share its keys
    mine, own_k, own_v = (_own(x, block) for x in (q, k, v))
    mine = mine.view(heads, r, g, m, n, d).permute(2, 0, 3, 1, 4, 5)
    own_k, own_v = (x.view(heads, g, m, n, d).transpose(0, 1) for x in (own_k, own_v))
    num_keys = n if block.prefix is None else n + block.prefix.shape[1]
    would_keep_scores = q.is_cuda and torch.is_grad_enabled()
    fused = would_keep_scores or num_keys >= FUSED_FROM or m == 1 or block.prefix is None
    attend = _fused if fused else _dense
    out = attend(mine, own_k, own_v, _ancestors(k, v, block), block.blocked, scale, dropout)
    rows = out.permute(0, 2, 4, 1, 3, 5).reshape(g * m * n, heads * r, d)
    return rows if block.kept is None else rows[block.kept]


def _own(x: Tensor, block: Block) -> Tensor:
    """The block's own tokens, (heads, G * m * L, d), out of (heads, T, d)."""
    if block.spread is None:
        return x[:, block.start : block.stop]
    return x.index_select(1, block.spread.flatten())


def _ancestors(k: Tensor, v: Tensor, block: Block) -> Before | None:
    """Keys and values of the ancestors."""
    if block.prefix is None:
        return None
    shape = (k.shape[0], *block.prefix.shape, k.shape[-1])
    flat = block.prefix.flatten()
    first, second = (x.index_select(1, flat).view(shape).transpose(0, 1) for x in (k, v))
    return first, second


def _dense(
    q: Tensor, k: Tensor, v: Tensor, before: Before | None, blocked: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """Matrix products; siblings share one copy of their ancestors' keys. q: (G, H, m, R, L, d)."""
    g, heads, m, r, n, d = q.shape
    q = q * scale
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    own = (q.reshape(g, heads, m, r * n, d) @ k.transpose(-1, -2)).view(g, heads, m, r, n, n)
    own = own.masked_fill(future, -torch.inf)
    if before is None:
        p = _weights(own, v.dtype, dropout)
        return (p.view(g, heads, m, r * n, n) @ v).view(q.shape)
    old = (q.reshape(g, heads, m * r * n, d) @ before[0].transpose(-1, -2)).view(g, heads, m, r, n, -1)
    if blocked is not None:
        old = old.masked_fill(blocked[:, None, None, None, None], -torch.inf)
    p = _weights(torch.cat([old, own], -1), v.dtype, dropout)
    p_old, p_own = p[..., :-n], p[..., -n:]
    out = p_old.reshape(g, heads, m * r * n, -1) @ before[1]
    return out.view(q.shape) + (p_own.reshape(g, heads, m, r * n, n) @ v).view(q.shape)


def _weights(scores: Tensor, dtype: torch.dtype, dropout: float) -> Tensor:
    """Softmax in fp32 at least, then dropout."""
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(dtype)
    return F.dropout(weights, dropout) if dropout else weights


def _fused(
    q: Tensor, k: Tensor, v: Tensor, before: Before | None, blocked: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """torch's fused attention, with the ancestors' keys copied for every sibling."""
    g, heads, m, r, n, d = q.shape
    rows = q.permute(0, 2, 1, 3, 4, 5).reshape(g * m, heads * r, n, d)
    keys, values = (x.transpose(1, 2).reshape(g * m, heads, n, d) for x in (k, v))
    if before is None:
        out = F.scaled_dot_product_attention(
            rows, keys, values, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=r > 1
        )
    else:
        wide = (g, m, heads, before[0].shape[2], d)
        old_k, old_v = (x[:, None].expand(wide).reshape(g * m, *wide[2:]) for x in before)
        visible = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        past = torch.ones(g * m, 1, n, wide[3], dtype=torch.bool, device=q.device)
        if blocked is not None:
            past = past & ~blocked.repeat_interleave(m, 0)[:, None, None]
        mask = torch.cat([past, visible.expand(g * m, 1, n, n)], -1)
        keys, values = torch.cat([old_k, keys], 2), torch.cat([old_v, values], 2)
        out = F.scaled_dot_product_attention(
            rows,
            *_repeated(keys, values, r),
            attn_mask=mask,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=_groups(rows, r),
        )
    return out.view(g, m, heads, r, n, d).permute(0, 2, 1, 3, 4, 5)


def _groups(rows: Tensor, repeats: int) -> bool:
    """Whether to pass grouped heads. CUDA's fused kernels take a mask or grouped heads; with both, torch uses a slow
    path.
    """
    return repeats > 1 and not rows.is_cuda


def _repeated(keys: Tensor, values: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """On CUDA, keys and values repeated for every query head; elsewhere unchanged."""
    if not keys.is_cuda or repeats == 1:
        return keys, values
    return keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)


def attach(language_model: Any) -> bool:
    """Make a transformers decoder accept `tree=` (a `PackedTree`) and `answers=` (packed positions) in its forward
    pass.

    Returns:
        True where the last layer has the known parts. With `answers` it then computes its feed-forward part, and the
        model its final norm, at those positions only, and hidden states are (1, N, D) instead of (1, T, D).
    """
    language_model.config._attn_implementation = NAME
    last = language_model.layers[-1]
    known = all(hasattr(last, n) for n in ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"))
    if known:
        last.forward = types.MethodType(_trimmed, last)
    return known


def _trimmed(layer: Any, hidden_states: Tensor, *args: Any, answers: Tensor | None = None, **kwargs: Any) -> Any:
    if answers is None:
        return type(layer).forward(layer, hidden_states, *args, **kwargs)
    if getattr(layer, "gradient_checkpointing", False) and layer.training:
        return layer._gradient_checkpointing_func(partial(_last, layer, answers=answers, **kwargs), hidden_states)
    return _last(layer, hidden_states, answers=answers, **kwargs)


def _last(layer: Any, hidden_states: Tensor, *, answers: Tensor, **kwargs: Any) -> Tensor:
    out, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
    kept = hidden_states[:, answers] + out[:, answers]
    hidden: Tensor = kept + layer.mlp(layer.post_attention_layernorm(kept))
    return hidden


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
