"""Muon against torch's own and against the polar factor."""

import pytest
import torch

from rewarddance.core.muon import Muon, orthogonalise


def test_it_makes_the_update_of_torchs_muon():
    torch.manual_seed(0)
    starts = [torch.randn(12, 20), torch.randn(20, 12), torch.randn(12, 20)]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in starts] for _ in range(2))
    a = Muon(ours, lr=0.02, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for x, y in zip(ours, theirs, strict=True):
            x.grad = torch.randn_like(x)
            y.grad = x.grad.clone()
        a.step()
        b.step()
    for x, y, w in zip(ours, theirs, starts, strict=True):
        moved = (x - w).detach().abs().max().item()
        assert (x - y).detach().abs().max().item() < 0.03 * moved  # torch computes it in bf16


def test_singular_values_come_close_to_one_along_the_same_directions():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 40)
    y = orthogonalise(x)
    assert torch.linalg.svdvals(y).min() > 0.6
    assert torch.linalg.svdvals(y).max() < 1.25
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(y.flatten(1), (u @ v).flatten(1))
    assert cosine.min().item() == pytest.approx(1, abs=0.05)
