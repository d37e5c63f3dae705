"""Ranking by round robin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import all_pairs
from rewarddance.core.types import Comparison, RewardModel


@dataclass(frozen=True)
class Ranking:
    """A round robin's outcome.

    Attributes:
        order: indices of the pictures, best first.
        wins: (K, K) fp32, P(yes, row is better than column); the diagonal is 0.5.
        margin: (K,) mean log-odds against the others, what `order` is sorted by.
    """

    order: tuple[int, ...]
    wins: Tensor
    margin: Tensor


@torch.no_grad()
def rank(judge: RewardModel, prompt: str, images: Sequence[Media], criterion: str = "overall") -> Ranking:
    """Compare every two pictures of a prompt and sort by mean margin.

    Raises:
        InputError: no pictures at all.
    """
    if not images:
        raise InputError("nothing to rank: no pictures given")
    pairs = all_pairs(len(images))
    margins = torch.zeros(len(images), len(images))
    if pairs:
        asked = [Comparison(prompt, images[i], images[j], criterion) for i, j in pairs]
        found = judge.judge(asked).margin.float().cpu()
        rows, columns = torch.tensor(pairs).T
        margins[rows, columns], margins[columns, rows] = found, -found
    mean = margins.sum(1) / max(1, len(images) - 1)
    return Ranking(tuple(mean.argsort(descending=True, stable=True).tolist()), torch.sigmoid(margins), mean)
