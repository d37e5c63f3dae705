"""PPO's critics without a network: running statistics of every prompt's scores, and an adaptive weight of the KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Baselines:
    """Running mean of the scores of P prompts (DDPO's per-prompt statistics, arXiv 2305.13301).

    Attributes:
        table: (P, 2) fp64: running mean of the scores, number of visits.
    """

    table: Tensor
    decay: float

    @classmethod
    def new(cls, num_prompts: int, decay: float) -> Baselines:
        return cls(torch.zeros(num_prompts, 2, dtype=torch.float64), decay)

    def advantages(self, rows: Sequence[int], scores: Tensor, clip: float) -> Tensor:
        """(score - mean) / deviation, with each prompt's running mean before this visit. A first visit uses the mean of
        the group.

        All prompts share one deviation: that of these scores from the means of their groups. With a deviation of its
        own, a prompt whose scores hardly differ would get huge advantages.

        Args:
            rows: prompts (P',); scores: (P', K), NaN where there is none.

        Returns:
            (P', K) in [-clip, clip], 0 where there is no score.
        """
        known = ~scores.isnan()
        group_mean = scores.double().nanmean(1, keepdim=True)
        mean, visits = self.table[list(rows), :1], self.table[list(rows), 1:]
        baseline = torch.where(visits > 0, mean, group_mean)
        deviation = (scores - group_mean).square()[known].mean().sqrt() if known.any() else torch.ones(())
        advantages = ((scores - baseline) / (deviation + 1e-4)).clamp(-clip, clip)
        return torch.where(known, advantages, 0.0).float()

    def note(self, rows: Sequence[int], scores: Tensor) -> None:
        """Update with the scores (P', K) of a visit; a prompt without any score stays as it is."""
        for row, answered in zip(rows, scores.double(), strict=True):
            answered = answered[~answered.isnan()]
            if not len(answered):
                continue
            keep = self.decay if self.table[row, 1] > 0 else 0.0
            self.table[row, 0] = keep * self.table[row, 0] + (1 - keep) * answered.mean()
            self.table[row, 1] += 1


def adapted_weight(weight: float, kl: float, target: float, num: int, horizon: int) -> float:
    """The KL's weight after `num` samples: weight (1 + clip(kl / target - 1, -0.2, 0.2) num / horizon).

    Ziegler et al., arXiv 1909.08593, equation 4.
    """
    error = max(-0.2, min(0.2, kl / target - 1))
    return weight * (1 + error * num / horizon)
