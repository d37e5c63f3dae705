"""Attention over a packed tree: every node attends to its ancestors and to itself. No mask over all tokens is built.

The function is registered with transformers as an attention implementation, so it works with every decoder that has
standard attention. A row with segments goes to `varlen.py`, one with a block mask to `flex.py`. A row of buckets
(`layout.py`) is computed here, one bucket after the other. If the nodes of a bucket differ in length, attention pads
them; other layers do not. Siblings share one copy of their ancestors' keys, so a prefix costs its own tokens once,
however many sequences branch from it.

Shapes: T packed tokens, G families of m siblings, L tokens a node, P tokens of ancestors, H key-value heads, R query
heads for each of them, d width of a head.
"""

from __future__ import annotations

import types
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rewarddance.vlm.flex import flex_tree_attention
from rewarddance.vlm.layout import Block, Visible
from rewarddance.vlm.varlen import varlen_tree_attention

NAME = "rewarddance_tree"
"""Name of this attention in transformers' registry."""
DENSE_SCORES = 1 << 24
"""Attention scores of a bucket that are in memory at once; larger buckets are cut into parts."""
FUSED_FROM = 1024
"""Number of keys a query attends to from which torch's fused attention is used (`_block` names the other cases). It
copies a prefix for every sibling, but keeps no scores."""

Before = tuple[Tensor, Tensor]
"""Keys and values of ancestors, (G, H, P, d) each."""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: Visible | None = None,
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
    if not isinstance(tree, tuple):
        # under autocast rotary embeddings in fp32 leave queries and keys in fp32
        query, key = query.to(value.dtype), key.to(value.dtype)
        if isinstance(tree, BlockMask):
            return flex_tree_attention(query, key, value, tree, scaling), None
        return varlen_tree_attention(query, key, value, tree, scaling), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = query[0], key[0], value[0]
    parts = [_block(q, k, v, part, scale, dropout) for block in tree for part in _cut(block, q.shape[0])]
    return torch.cat(parts)[None], None


def _cut(block: Block, num_heads: int) -> list[Block]:
    """Parts of a block whose scores stay within `DENSE_SCORES`, by families."""
    keys = block.length + (0 if block.prefix is None else block.prefix.shape[1])
    scores_a_family = num_heads * block.siblings * block.length * keys
    fit = max(1, DENSE_SCORES // scores_a_family)
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
    own_q, own_k, own_v = (_own(x, block) for x in (q, k, v))
    own_q = own_q.view(heads, r, g, m, n, d).permute(2, 0, 3, 1, 4, 5)
    own_k, own_v = (x.view(heads, g, m, n, d).transpose(0, 1) for x in (own_k, own_v))
    num_keys = n if block.prefix is None else n + block.prefix.shape[1]
    keeps_graph = torch.is_grad_enabled()
    fused = q.is_cuda and keeps_graph  # otherwise the backward pass would keep the scores of all layers
    fused |= num_keys >= FUSED_FROM
    fused |= (m == 1 or block.prefix is None) and not keeps_graph  # its backward pass is slow on a CPU
    attend = _fused if fused else _dense
    out = attend(own_q, own_k, own_v, _ancestors(k, v, block), block.blocked, scale, dropout)
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
    """Make a transformers decoder accept `tree=` (`PackedTree.visible`) and `answers=` (packed positions) in its
    forward pass.

    Returns:
        Whether the last layer has the known parts. If so, with `answers` the last layer computes its feed-forward part,
        and the model its final norm, at those positions only. Hidden states are then (1, N, D) instead of (1, T, D).
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
