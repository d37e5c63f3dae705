"""One step of preference learning: a pure function of a judge and its questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rewarddance.core.types import Comparison, RewardModel, Verdict
from rewarddance.reward.config import Paradigm
from rewarddance.reward.paradigms import Question, losses, targets_of


def agreement(margin: Tensor, truth: Tensor) -> Tensor:
    """1 where the margin has the sign of the truth, 0.5 where either is exactly 0, (N,)."""
    return 0.5 + 0.5 * torch.sign(margin) * torch.sign(truth)


def reward_step(
    judge: RewardModel,
    batch: Sequence[Question],
    paradigm: Paradigm = "generative_pairwise",
    smoothing: float = 0.0,
    reason_weight: float = 0.0,
) -> dict[str, Tensor]:
    """Loss and metrics of one batch; the caller calls `backward` on `loss`.

    Args:
        reason_weight: weight of the mean negative log-probability of a rationale's tokens beside the verdict's loss. It
            is a mean over tokens, so that a long reason does not outweigh its verdict.

    Returns:
        loss: weighted mean (see `paradigms.losses`); verdict_loss: the same without reasons; coin_loss: the loss of
        margins of 0; accuracy: share of targets other than ties whose order the margin has right (`regression`: share
        of scores within half a point); answer_mass: mean probability of the answer words; margin, margin_std: mean and
        standard deviation of the margins; reason_logp: mean log-probability of a rationale's tokens; num_decided,
        num_reasons: number of questions in the means accuracy and reason_logp (NaN without any).
    """
    verdict, reason_logp = verdicts(judge, [q.comparison for q in batch])
    targets, weights = (t.to(verdict.margin.device) for t in targets_of(batch))
    verdict_loss = loss = (losses(paradigm, verdict, targets, smoothing) * weights).mean()
    has_reason = ~torch.isnan(reason_logp)
    if reason_weight:
        loss = loss - reason_weight * reason_logp[has_reason].sum() / len(reason_logp)
    margin, decided = verdict.margin.detach(), targets != 0.5
    if paradigm == "regression":
        decided = torch.ones_like(decided)
        accuracy = ((margin - targets).abs() < 0.5).float().mean()
    else:
        accuracy = agreement(margin[decided], targets[decided] - 0.5).mean()
    return {
        "loss": loss,
        "verdict_loss": verdict_loss.detach(),
        "coin_loss": (losses(paradigm, _undecided(verdict), targets, smoothing) * weights).mean(),
        "accuracy": accuracy,
        "answer_mass": verdict.answer_mass.detach().mean(),
        "margin": margin.mean(),
        "margin_std": margin.std(correction=0),
        "reason_logp": reason_logp[has_reason].detach().mean(),
        "num_decided": decided.sum(),
        "num_reasons": has_reason.sum(),
    }


def _undecided(verdict: Verdict) -> Verdict:
    """The verdict of a coin: margins and differences of 0."""
    coin = torch.full_like(verdict.margin.detach(), -math.log(2))
    parts = {k: v.detach() for k, v in verdict.parts.items()}
    if "difference" in parts:
        parts["difference"] = torch.zeros_like(coin)
    return replace(Verdict(coin, coin, torch.ones_like(coin)), parts=parts)


def verdicts(judge: RewardModel, comparisons: Sequence[Comparison]) -> tuple[Verdict, Tensor]:
    """Verdicts and the mean log-probability of each rationale's tokens, (N,), NaN where there is none to learn."""
    if isinstance(judge, LearnsReasons):
        return judge.learn(comparisons)
    verdict = judge.judge(comparisons)
    return verdict, torch.full_like(verdict.margin, torch.nan)


@runtime_checkable
class LearnsReasons(Protocol):
    """A judge that can be trained on reasons (`GenerativeJudge.learn`)."""

    def learn(self, comparisons: Sequence[Comparison]) -> tuple[Verdict, Tensor]: ...


@runtime_checkable
class HasProblems(Protocol):
    """A judge that can say beforehand that it cannot be asked about a comparison."""

    def problem(self, comparison: Comparison) -> str | None: ...


def askable(judge: RewardModel, batch: Sequence[Question]) -> list[Question]:
    """The questions that the judge can be asked."""
    if not isinstance(judge, HasProblems):
        return list(batch)
    return [q for q in batch if judge.problem(q.comparison) is None]
