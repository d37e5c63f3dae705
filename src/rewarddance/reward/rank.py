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


def rank(judge: RewardModel, prompt: str, images: Sequence[Media], criterion: str | None = None) -> Ranking:
    """Compare every two pictures of a prompt and sort by mean margin.

    Raises:
        InputError: no pictures at all.
    """
    return rank_all(judge, [prompt], [images], criterion)[0]


@torch.no_grad()
def rank_all(
    judge: RewardModel, prompts: Sequence[str], images: Sequence[Sequence[Media]], criterion: str | None = None
) -> list[Ranking]:
    """`rank` for many prompts, in one call to the judge."""
    if not all(images):
        raise InputError("nothing to rank: no pictures given")
    asked = [
        Comparison(prompt, mine[i], mine[j], criterion)
        for prompt, mine in zip(prompts, images, strict=True)
        for i, j in all_pairs(len(mine))
    ]
    margins = judge.judge(asked).margin.float().cpu() if asked else torch.zeros(0)
    parts = torch.split(margins, [len(all_pairs(len(mine))) for mine in images])
    return [_ranking(len(mine), part) for mine, part in zip(images, parts, strict=True)]


def _ranking(num: int, margins: Tensor) -> Ranking:
    """From the margins of all pairs (K (K - 1) / 2)."""
    table = torch.zeros(num, num)
    if num > 1:
        rows, columns = torch.tensor(all_pairs(num)).T
        table[rows, columns], table[columns, rows] = margins, -margins
    mean = table.sum(1) / max(1, num - 1)
    return Ranking(tuple(mean.argsort(descending=True, stable=True).tolist()), torch.sigmoid(table), mean)
