"""One step of preference learning: a pure function of a judge and what it is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rewarddance.core.types import Comparison, RewardModel, Verdict
from rewarddance.reward.config import Paradigm
from rewarddance.reward.paradigms import Question, losses, targets_of


def agreement(margin: Tensor, truth: Tensor) -> Tensor:
    """1 where the margin has the truth's sign, 0.5 where the margin is exactly 0, (N,)."""
    return 0.5 + 0.5 * torch.sign(margin) * torch.sign(truth)


def reward_step(
    judge: RewardModel,
    asked: Sequence[Question],
    paradigm: Paradigm = "generative_pairwise",
    smoothing: float = 0.0,
    reason_weight: float = 0.0,
) -> dict[str, Tensor]:
    """Loss and figures of one batch; the caller calls `backward` on `loss`.

    Args:
        reason_weight: weight of the mean negative log-probability of a rationale's tokens beside the verdict's loss. A
            mean, not a sum, so that a long reason does not drown its verdict.

    Returns:
        loss: weighted mean (see `paradigms.losses`); verdict_loss: the same without reasons; coin_loss: what margins of
        0 would cost; accuracy: share of decided targets (not ties) that the margin orders right, for `regression` the
        share of scores within half a point; answer_mass: mean probability of the answer words; margin, margin_std: mean
        and spread of the margins; reason_logp: mean log-probability of a rationale's tokens; num_decided, num_told: of
        how many questions accuracy and reason_logp are the means (NaN of none).
    """
    verdict, told = verdicts(judge, [q.comparison for q in asked])
    targets, weights = (t.to(verdict.margin.device) for t in targets_of(asked))
    verdict_loss = loss = (losses(paradigm, verdict, targets, smoothing) * weights).mean()
    given = ~torch.isnan(told)
    if reason_weight and bool(given.any()):
        loss = loss - reason_weight * told[given].sum() / len(told)
    margin, decided = verdict.margin.detach(), targets != 0.5
    if paradigm == "regression":
        decided = torch.ones_like(decided)
        accuracy = ((margin - targets).abs() < 0.5).float().mean()
    else:
        accuracy = agreement(margin[decided], targets[decided] - 0.5).mean()
    coin = torch.full_like(verdict.margin.detach(), -math.log(2))
    return {
        "loss": loss,
        "verdict_loss": verdict_loss.detach(),
        "coin_loss": (
            losses(paradigm, Verdict(coin, coin, torch.ones_like(coin)), targets, smoothing) * weights
        ).mean(),
        "accuracy": accuracy,
        "answer_mass": verdict.answer_mass.detach().mean(),
        "margin": margin.mean(),
        "margin_std": margin.std(correction=0),
        "reason_logp": told[given].detach().mean(),
        "num_decided": decided.sum(),
        "num_told": given.sum(),
    }


def verdicts(judge: RewardModel, comparisons: Sequence[Comparison]) -> tuple[Verdict, Tensor]:
    """Verdicts and, of judges that learn reasons, what their rationales are worth to them, NaN elsewhere."""
    if isinstance(judge, Reasoning):
        return judge.learn(comparisons)
    verdict = judge.judge(comparisons)
    return verdict, torch.full_like(verdict.margin, torch.nan)


@runtime_checkable
class Reasoning(Protocol):
    """A judge that can be taught reasons (`GenerativeJudge.learn`)."""

    def learn(self, comparisons: Sequence[Comparison]) -> tuple[Verdict, Tensor]: ...
