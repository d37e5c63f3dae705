"""Zero-order search (Ma et al., arXiv 2501.09732): try the neighbours of a noise, and move to a better one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rewarddance.core.protocols import Generator
from rewarddance.core.task import Request
from rewarddance.search.config import ZeroOrderConfig
from rewarddance.search.run import Result, SearchRun, portions
from rewarddance.search.verifier import Verifier


@torch.no_grad()
def zero_order(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Request],
    *,
    nfe: int,
    num_steps: int = 10,
    seed: int = 0,
    settings: ZeroOrderConfig = ZeroOrderConfig(),
    batch: int = 128,
) -> list[Result]:
    """In rounds: sample from neighbours of the pivot noise; the best one becomes the pivot if it is better.

    If none is better, the next round has a fresh base noise and one neighbour less, so that all prompts stay in one
    batch; the best of that round becomes the pivot. The result is the best picture of all rounds.

    Raises:
        BudgetError: the budget does not allow one sample.
    """
    run = SearchRun(generator, verifier, prompts, nfe, num_steps, seed, batch)
    carried = None  # the best candidate so far and the pivot
    restart = torch.ones(len(prompts), dtype=torch.bool)
    for size in portions(run.num_samples, settings.neighbours):
        fresh = run.noise(size)
        pivot = fresh[:, :1] if carried is None else where(restart, fresh[:, :1], carried.states[:, 1:])
        noise = neighbours(pivot, fresh, settings.cosine)
        noise[:, :1] = where(restart, pivot, noise[:, :1])  # a fresh base is a candidate itself
        everything = run.judged(noise, run.sample(noise), carried)
        leader = everything.last(size).best()
        better = ~leader.scores[:, 0].isnan()
        if carried is None:
            carried = leader.join(leader)
            restart = ~better
            continue
        better &= restart | (leader.scores[:, 0] > everything.scores[:, 1])
        pivots = everything.take(torch.ones(len(prompts), 1, dtype=torch.long)).join(leader)
        carried = everything.best().join(pivots.take(better.long()[:, None]))
        restart = ~better
    assert carried is not None  # the budget allows one sample
    return run.results(carried)


def neighbours(pivot: Tensor, fresh: Tensor, cosine: float) -> Tensor:
    """Noises of the pivot's norm at a given angle to it: |x| (cosine u + sqrt(1 - cosine^2) w), u = x / |x|.

    Args:
        pivot: x, (P, 1, ...).
        fresh: (P, K, ...) independent noise; w is its direction after the part along u is taken away.
    """
    x, w = pivot.flatten(2), fresh.flatten(2)
    norm = x.norm(dim=2, keepdim=True)
    u = x / norm
    w = w - (w * u).sum(2, keepdim=True) * u
    w = w / w.norm(dim=2, keepdim=True)
    return torch.as_tensor(norm * (cosine * u + math.sqrt(1 - cosine**2) * w)).view_as(fresh)


def where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Rows of `a` where the mask (P,) is True, else rows of `b`."""
    return torch.where(mask.to(a.device).view(-1, *([1] * (a.ndim - 1))), a, b)
