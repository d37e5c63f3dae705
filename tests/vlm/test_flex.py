"""The rows that CUDA takes, on the CPU: the same visibility, answers and gradients as with buckets."""

import numpy as np
import pytest
import torch
from dialogs import WORDS, mixed_dialogs
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarddance.core.media import Media
from rewarddance.vlm import flex
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.layout import lay_out
from rewarddance.vlm.plan import build_tree
from rewarddance.vlm.varlen import segments

CPU = torch.device("cpu")
KEYS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=12, unique=True)


def ancestors(tree):
    """Which token of the depth-first row sees which, from the nodes' parents."""
    first = np.cumsum([0, *(n.length for n in tree.nodes)])
    seen = np.zeros((tree.num_tokens, tree.num_tokens), bool)
    for i, node in enumerate(tree.nodes):
        rows = range(first[i], first[i] + node.length)
        above = node.parent
        while above >= 0:
            seen[first[i] : first[i + 1], first[above] : first[above + 1]] = True
            above = tree.nodes[above].parent
        for q in rows:
            seen[q, first[i] : q + 1] = True
    return seen


@settings(deadline=None)
@given(KEYS, st.sampled_from([1, 2, 3, 8]))
def test_blocks_and_rule_say_what_the_tree_says(keys, block):
    tree = build_tree(sorted(keys))
    size = flex.BLOCK
    flex.BLOCK = block
    try:
        mask = lay_out(tree, CPU, "flex").visible
    finally:
        flex.BLOCK = size
    wanted = ancestors(tree)
    at = torch.arange(tree.num_tokens)
    by_rule = mask.mask_mod(torch.tensor(0), torch.tensor(0), at[:, None], at[None])
    assert np.array_equal(by_rule.numpy(), wanted)
    num = mask.kv_num_blocks.shape[-1]
    shown = np.zeros((num * block, num * block), bool)
    for q in range(num):
        rows = slice(q * block, (q + 1) * block)
        for k in mask.full_kv_indices[0, 0, q, : mask.full_kv_num_blocks[0, 0, q]].tolist():
            shown[rows, k * block : (k + 1) * block] = True
            assert wanted[rows, k * block : (k + 1) * block].all()
        for k in mask.kv_indices[0, 0, q, : mask.kv_num_blocks[0, 0, q]].tolist():
            shown[rows, k * block : (k + 1) * block] = True
    assert not (wanted & ~shown[: len(wanted), : len(wanted)]).any()


def gradients(backbone, dialogs, media, **limits):
    logits = Engine(backbone, **limits).answer_logits(dialogs, WORDS).logits
    weights = [p for n, p in backbone.module.named_parameters() if "k_proj.bias" not in n]
    inputs = [m.frames for m in media] + weights
    grads = torch.autograd.grad((logits[:, 0] - logits[:, 1]).square().sum(), inputs, allow_unused=True)
    return logits.detach(), grads


@given(KEYS)
def test_segments_say_what_the_tree_says(keys):
    tree = build_tree(sorted(keys))
    nodes = segments(*_parts(tree), CPU)
    seen = np.zeros((tree.num_tokens, tree.num_tokens), bool)
    bounds = zip(
        nodes.queries_upto.tolist(), nodes.queries_upto[1:].tolist(), nodes.keys_upto[1:].tolist(), strict=False
    )
    for start, stop, end in bounds:
        for row in range(start, stop):  # the mask is aligned to the last key
            first = int(nodes.keys_upto[np.searchsorted(nodes.keys_upto.numpy(), end) - 1])
            seen[row, nodes.keys[first : end - (stop - 1 - row)]] = True
    assert np.array_equal(seen, ancestors(tree))


def _parts(tree):
    lengths = np.array([n.length for n in tree.nodes])
    return np.cumsum(lengths) - lengths, lengths, [n.parent for n in tree.nodes]


@pytest.mark.parametrize("kernel", ["flex", "varlen"])
@pytest.mark.parametrize("budget", [0, 300])
@pytest.mark.parametrize("kind", ["internvl", "qwen2_5_vl", "qwen3_vl"])
def test_answers_and_gradients_are_those_of_the_buckets(
    kind, budget, kernel, backbone, new_qwen, pictures, monkeypatch
):
    model = backbone if kind == "internvl" else new_qwen(kind)
    media = [Media(m.frames.clone().requires_grad_()) for m in pictures[:5]]
    dialogs = mixed_dialogs(media)
    wanted, wanted_grads = gradients(model, dialogs, media)
    monkeypatch.setattr(Backbone, "attention_kernel", lambda self, dtype: kernel)
    monkeypatch.setattr(flex, "BLOCK", 32)
    found, found_grads = gradients(model, dialogs, media, budget=budget)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for a, b in zip(found_grads, wanted_grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b.norm() > 1e-6:
            assert (a - b).norm() / b.norm() < 1e-4
