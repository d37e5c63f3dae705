"""Attention over a packed tree equals attention of every sequence by itself."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rewarddance.vlm import attention, plan
from rewarddance.vlm.attention import tree_attention
from rewarddance.vlm.layout import lay_out
from rewarddance.vlm.plan import build_tree

HEADS, GROUPS, WIDTH = 4, 2, 8


def keys(ragged):
    """Three levels: prompts, references, candidates; with `ragged`, of many lengths."""
    rng = torch.Generator().manual_seed(0)
    found = []
    for prompt in range(3):
        head = (prompt, *range(10, 14 + (prompt if ragged else 0)))
        for ref in range(3):
            for cand in range(4):
                extra = int(torch.randint(9, (1,), generator=rng)) if ragged else 0
                found.append((*head, 100 + ref, 7, 7, 200 + cand, *range(30, 35 + extra)))
    return sorted(set(found))


def run(tree_keys, seed=0):
    tree = build_tree(tree_keys)
    packed = lay_out(tree, torch.device("cpu"))
    rng = torch.Generator().manual_seed(seed)
    # the same token of the same prefix has the same query, key and value, whoever holds it
    size = tree.num_tokens
    q = torch.randn(1, HEADS, size, WIDTH, generator=rng, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, GROUPS, size, WIDTH, generator=rng, dtype=torch.float64, requires_grad=True) for _ in "kv")
    out, _ = tree_attention(torch.nn.Identity(), q, k, v, None, tree=packed.visible)
    return tree, packed, (q, k, v), out


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("fused_from", [1, 10_000])
@pytest.mark.parametrize("few", [1, 100])
@pytest.mark.parametrize("scores", [100, 1 << 24])
def test_equals_attention_of_each_sequence(ragged, fused_from, few, scores, monkeypatch):
    monkeypatch.setattr(attention, "FUSED_FROM", fused_from)
    monkeypatch.setattr(attention, "DENSE_SCORES", scores)
    monkeypatch.setattr(plan, "FEW", few)
    tree_keys = keys(ragged)
    _, packed, inputs, out = run(tree_keys)
    total = 0.0
    wanted_total = 0.0
    for member in range(len(tree_keys)):
        at = packed.places(member, 0)
        q, k, v = (x[:, :, at] for x in inputs)
        wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        assert torch.allclose(out[0, at], wanted[0].transpose(0, 1), atol=1e-12)
        total, wanted_total = total + out[0, at].sin().sum(), wanted_total + wanted.sin().sum()
    ours = torch.autograd.grad(total, inputs, retain_graph=True)
    theirs = torch.autograd.grad(wanted_total, inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_nothing_but_attention_is_padded(monkeypatch):
    monkeypatch.setattr(plan, "FEW", 0)
    tree, packed, _, _ = run(keys(True))
    members = [np.full(len(k), i) for i, k in enumerate(keys(True))]
    tokens = list(zip(packed.gather(members), packed.gather([np.arange(len(k)) for k in keys(True)]), strict=True))
    assert len(tokens) == len(set(tokens)) == tree.num_tokens
    assert any(b.spread is not None and b.spread.numel() > b.stop - b.start for b in packed.visible)
    for i, node in enumerate(tree.nodes):
        assert tokens[packed.first[i]] == (node.member, node.start)
    for member, key in enumerate(keys(True)):
        for start in (0, 3, len(key) - 1):
            at = packed.places(member, start)
            assert [tokens[p][1] for p in at] == list(range(start, len(key)))


def test_without_a_tree_it_is_plain_attention():
    q, k, v = (torch.randn(2, 4, 5, 8) for _ in range(3))
    module = torch.nn.Identity()
    module.is_causal, module.num_key_value_groups = True, 1
    out, _ = tree_attention(module, q, k, v, None)
    assert torch.allclose(out, F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2), atol=1e-6)
