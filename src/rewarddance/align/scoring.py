"""Scores of groups of pictures by a judge, and the advantages that algorithms learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rewarddance.align.diagnostics import part_means
from rewarddance.core.media import Media
from rewarddance.core.task import Request
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.reward.rank import rank_all

EPSILON = 1e-4
"""Added to a group's standard deviation (Flow-GRPO)."""
ScoreBy = Literal["round_robin", "win_rate", "pointwise", "references"]


@dataclass(frozen=True)
class Scores:
    """A judge's scores of P groups of K pictures.

    Attributes:
        values: (P, K) fp32 on the CPU, NaN where the judge refused every question about a picture.
        win_rates: with references, P(better than the reference) of every picture, (P, K), NaN where refused.
        refused: reasons of the questions that it refused; num_asked: all questions.
        parts: mean value of every judge of a set, where pictures were not compared with one another.
    """

    values: Tensor
    refused: tuple[str, ...]
    num_asked: int
    win_rates: Tensor | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@torch.no_grad()
def score_groups(
    judge: RewardModel,
    prompts: Sequence[Request],
    groups: Sequence[Sequence[Media]],
    score_by: ScoreBy,
    criterion: str,
    references: Sequence[Media | None] = (),
) -> Scores:
    """Score the K pictures of each of P prompts, in one call to the judge.

    Args:
        score_by: `RolloutConfig.score`.
        references: one a prompt, for `references`.
    """
    size = len(groups[0])
    if score_by in ("round_robin", "win_rate"):
        rankings = rank_all(judge, prompts, groups, criterion)
        refused = tuple(why for r in rankings for why in r.refused.values())
        num_comparisons = len(groups) * size * (size - 1) // 2
        rows = [r.margin if score_by == "round_robin" else _win_rates(r.wins) for r in rankings]
        return Scores(torch.stack(rows), refused, num_comparisons)
    against = references if score_by == "references" else [None] * len(prompts)
    comparisons = [
        Comparison.of(prompt, picture, reference, criterion)
        for prompt, group, reference in zip(prompts, groups, against, strict=True)
        for picture in group
    ]
    verdict = judge.judge(comparisons)
    values, refused = verdict.margin.float().cpu().view(-1, size), tuple(verdict.refused.values())
    rates = verdict.win_rate.float().cpu().view(-1, size) if score_by == "references" else None
    return Scores(values, refused, len(comparisons), rates, part_means(verdict.parts))


def _win_rates(wins: Tensor) -> Tensor:
    """Mean P(yes) of every picture against the others, (K,), from (K, K); NaN where all were refused."""
    others = wins.masked_fill(torch.eye(len(wins), dtype=torch.bool), torch.nan)
    return others.nanmean(1)


def group_advantages(scores: Tensor, spread: float, clip: float) -> tuple[Tensor, Tensor]:
    """Scores relative to their group: (score - mean) / (standard deviation + 1e-4), clipped.

    Args:
        scores: (P, K), NaN where there is none.
        spread: groups with a smaller standard deviation are dropped.

    Returns:
        Advantages (P, K), 0 where there is no score and in dropped groups; which groups are kept, (P,).
    """
    known = ~scores.isnan()
    mean = scores.nanmean(1, keepdim=True)
    std = (scores - mean).square().nanmean(1, keepdim=True).sqrt()
    kept = (known.sum(1) > 1) & (std[:, 0] > spread)
    advantages = ((scores - mean) / (std + EPSILON)).clamp(-clip, clip)
    return torch.where(known & kept[:, None], advantages, 0.0), kept
