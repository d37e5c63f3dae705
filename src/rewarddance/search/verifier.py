"""Verifiers give scores to the candidates of a prompt. Any judge can be a verifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rewarddance.core.media import Media
from rewarddance.core.task import Gold, Request
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.reward.rank import rank_all

Pictures = Sequence[Sequence[Media]]
"""K pictures for each of P prompts."""


class Verifier(Protocol):
    """Scores pictures. Higher is better.

    Attributes:
        absolute: whether scores of different calls can be compared. False: only scores of one prompt in one call can.
        nfe, decodes: the cost of drawing its references, for each prompt.
        num_asked: comparisons asked so far, all prompts together.
    """

    @property
    def absolute(self) -> bool: ...
    @property
    def nfe(self) -> int: ...
    @property
    def decodes(self) -> int: ...
    @property
    def num_asked(self) -> int: ...

    def scores(self, prompts: Sequence[Request], pictures: Pictures) -> Tensor:
        """Scores (P, K) of K pictures for each of P prompts, NaN where refused. All prompts are judged in one call."""
        ...


@dataclass
class Pointwise:
    """Asks about every picture alone; the score is the log-odds of "yes" (RewardDance, arXiv 2509.08826)."""

    judge: RewardModel
    criterion: str | None = None
    num_asked: int = 0
    absolute = True
    nfe = 0
    decodes = 0

    @torch.no_grad()
    def scores(self, prompts: Sequence[Request], pictures: Pictures) -> Tensor:
        comparisons = [
            Comparison.of(p, m, None, self.criterion) for p, row in zip(prompts, pictures, strict=True) for m in row
        ]
        self.num_asked += len(comparisons)
        return self.judge.judge(comparisons).margin.float().cpu().view(len(prompts), -1)


@dataclass
class RoundRobin:
    """Compares every two pictures of a group; the score is the mean margin against the others of the group.

    A group of one has the score 0.
    """

    judge: RewardModel
    criterion: str | None = None
    num_asked: int = 0
    absolute = False
    nfe = 0
    decodes = 0

    def scores(self, prompts: Sequence[Request], pictures: Pictures) -> Tensor:
        self.num_asked += sum(len(row) * (len(row) - 1) // 2 for row in pictures)
        return torch.stack([r.margin for r in rank_all(self.judge, prompts, pictures, self.criterion)])


@dataclass
class Anchored:
    """Compares every picture with fixed pictures of its prompt; the score is the mean margin against them.

    Attributes:
        anchors: A pictures for each of P prompts. `scores` takes exactly these P prompts, in this order.
    """

    judge: RewardModel
    anchors: Pictures
    criterion: str | None = None
    nfe: int = 0
    decodes: int = 0
    num_asked: int = 0
    absolute = True

    @torch.no_grad()
    def scores(self, prompts: Sequence[Request], pictures: Pictures) -> Tensor:
        comparisons = [
            Comparison.of(prompt, picture, anchor, self.criterion)
            for prompt, row, anchors in zip(prompts, pictures, self.anchors, strict=True)
            for picture in row
            for anchor in anchors
        ]
        self.num_asked += len(comparisons)
        margins = self.judge.judge(comparisons).margin.float().cpu()
        return margins.view(len(prompts), -1, len(self.anchors[0])).nanmean(2)


@dataclass
class ByGold:
    """Scores by a task's gold standard: the best verifier that is possible."""

    gold: Gold
    num_asked: int = 0
    absolute = True
    nfe = 0
    decodes = 0

    def scores(self, prompts: Sequence[Request], pictures: Pictures) -> Tensor:
        flat = [m for row in pictures for m in row]
        repeated = [p for p, row in zip(prompts, pictures, strict=True) for _ in row]
        self.num_asked += len(flat)
        return torch.tensor(self.gold(repeated, flat, flat)).view(len(prompts), -1)


@runtime_checkable
class _SaysWhatItAnswers(Protocol):
    criterion: str

    def problem(self, comparison: Comparison) -> str | None: ...


def answers_alone(judge: RewardModel, criterion: str | None = None) -> bool:
    """Whether a judge can be asked about one picture, or about one clip. A judge without the method `problem` counts
    as able."""
    if not isinstance(judge, _SaysWhatItAnswers):
        return True
    grey = torch.full((1, 3, 64, 64), 0.5)
    media = Media(grey), Media(grey.expand(5, -1, -1, -1), fps=4.0)
    comparisons = [Comparison("a sample", m, None, criterion or judge.criterion) for m in media]
    return any(judge.problem(c) is None for c in comparisons)
