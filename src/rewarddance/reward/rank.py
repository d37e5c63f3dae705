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
from rewarddance.core.types import Comparison, RewardModel, Verdict


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


def rank(judge: RewardModel, prompt: Request, images: Sequence[Media], criterion: str | None = None) -> Ranking:
    """Compare every two pictures of a prompt and sort by mean margin. Refused pairs are left out.

    Args:
        prompt: a text, or a request of a generator, whose picture the judge sees too.

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
        Comparison.of(prompt, group[i], group[j], criterion)
        for prompt, group in zip(prompts, images, strict=True)
        for i, j in all_pairs(len(group))
    ]
    verdict = judge.judge(comparisons) if comparisons else Verdict.all_refused({})
    margins = verdict.margin.float().cpu()
    swapped = -margins if verdict.swapped_margin is None else verdict.swapped_margin.float().cpu()
    rankings, start = [], 0
    for group in images:
        pairs = all_pairs(len(group))
        reasons = {p: verdict.refused[i] for i, p in enumerate(pairs, start) if i in verdict.refused}
        rows = slice(start, start + len(pairs))
        rankings.append(_ranking(len(group), margins[rows], swapped[rows], reasons))
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
    was_compared = (~mean.isnan()).nonzero().flatten().tolist()
    order = sorted(was_compared, key=mean.tolist().__getitem__, reverse=True)  # equal pictures keep their order
    return Ranking(tuple(order), torch.sigmoid(table), mean, refused)
