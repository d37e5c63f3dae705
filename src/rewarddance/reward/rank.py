"""Ranking by round robin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rewarddance.core.errors import InputError, JudgementError
from rewarddance.core.media import Media
from rewarddance.core.preferences import all_pairs
from rewarddance.core.task import Request
from rewarddance.core.types import Comparison, RewardModel


@dataclass(frozen=True)
class Ranking:
    """The result of a round robin over K pictures.

    Attributes:
        order: indices of the pictures, best first; pictures without any answered comparison are left out.
        wins: (K, K) fp32 in the order of the input: P(yes, row is better than column). The diagonal is 0.5, refused
            pairs are NaN. The two entries of a pair sum to 1, or to less with a conservative ensemble.
        margin: (K,) mean log-odds against the others, in the order of the input; `order` is sorted by it.
        refused: the reason of every pair that was refused.
    """

    order: tuple[int, ...]
    wins: Tensor
    margin: Tensor
    refused: Mapping[tuple[int, int], str] = field(default_factory=dict)


def rank(judge: RewardModel, prompt: str, images: Sequence[Media], criterion: str | None = None) -> Ranking:
    """Compare every two pictures of a prompt and sort by mean margin. Refused pairs are left out.

    Raises:
        InputError: no pictures.
        JudgementError: every pair was refused.
    """
    ranking = rank_all(judge, [prompt], [images], criterion)[0]
    if not ranking.order:
        raise JudgementError(f"no two pictures could be compared: {next(iter(ranking.refused.values()))}")
    return ranking


@torch.no_grad()
def rank_all(
    judge: RewardModel, prompts: Sequence[Request], images: Sequence[Sequence[Media]], criterion: str | None = None
) -> list[Ranking]:
    """`rank` for many prompts, in one call to the judge. A prompt without any answered pair has an empty order.

    Args:
        prompts: texts, or requests of a generator, whose pictures the judge sees too.
    """
    if not all(images):
        raise InputError("nothing to rank: no pictures given")
    comparisons = [
        Comparison.of(prompt, own[i], own[j], criterion)
        for prompt, own in zip(prompts, images, strict=True)
        for i, j in all_pairs(len(own))
    ]
    margins, swapped, refused = torch.zeros(0), torch.zeros(0), dict[int, str]()
    if comparisons:
        verdict = judge.judge(comparisons)
        margins, refused = verdict.margin.float().cpu(), dict(verdict.refused)
        swapped = -margins if verdict.swapped_margin is None else verdict.swapped_margin.float().cpu()
    rankings, start = [], 0
    for own in images:
        pairs = all_pairs(len(own))
        reasons = {pair: refused[start + k] for k, pair in enumerate(pairs) if start + k in refused}
        part = slice(start, start + len(pairs))
        rankings.append(_ranking(len(own), margins[part], swapped[part], reasons))
        start += len(pairs)
    return rankings


def _ranking(num: int, margins: Tensor, swapped: Tensor, refused: Mapping[tuple[int, int], str]) -> Ranking:
    """From the margins of all pairs (K (K - 1) / 2) and those of the swapped pairs, NaN where refused."""
    table = torch.zeros(num, num)
    if num > 1:
        rows, columns = torch.tensor(all_pairs(num)).T
        table[rows, columns], table[columns, rows] = margins, swapped
    compared = ~table.isnan() & ~torch.eye(num, dtype=torch.bool)
    mean = table.nan_to_num().sum(1) / compared.sum(1)  # NaN where a picture was never compared
    if num == 1:
        mean = torch.zeros(1)
    order = mean.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()
    return Ranking(tuple(i for i in order if not mean[i].isnan()), torch.sigmoid(table), mean, refused)
