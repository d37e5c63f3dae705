"""Losses and accuracies of preference learning: pure functions of verdicts and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rewarddance.core.types import Comparison, RewardModel, Verdict


def preference_loss(verdict: Verdict, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the verdicts with soft labels, (N,).

    For a generative judge it is the next-token loss over the whole vocabulary, so the mass on the answer words is
    learnt too; for a scalar judge it is -log sigmoid of the score difference (Bradley-Terry), because its verdict's
    log-probabilities are log-sigmoids.

    Args:
        labels: (N,) probability that the candidate is better; 0.5 is a tie.
        smoothing: labels are drawn this far towards 0.5.
    """
    y = labels * (1 - smoothing) + 0.5 * smoothing
    return -(y * verdict.logp_yes + (1 - y) * verdict.logp_no)


def agreement(margin: Tensor, truth: Tensor) -> Tensor:
    """1 where the margin has the truth's sign, 0.5 where the margin is exactly 0, (N,)."""
    return 0.5 + 0.5 * torch.sign(margin) * torch.sign(truth)


def labels_of(comparisons: Sequence[Comparison]) -> Tensor:
    """(N,) labels; every comparison must have one."""
    return torch.tensor([c.label if c.label is not None else float("nan") for c in comparisons])


def reward_step(judge: RewardModel, comparisons: Sequence[Comparison], smoothing: float = 0.0) -> dict[str, Tensor]:
    """Loss and figures of one batch; the caller calls `backward` on `loss`.

    Returns:
        loss: mean cross-entropy; accuracy: share of decided labels (not ties) that the margin orders right;
        answer_mass: mean probability of the answer words; margin_std: spread of the margins.
    """
    verdict = judge.judge(comparisons)
    labels = labels_of(comparisons).to(verdict.margin.device)
    loss = preference_loss(verdict, labels, smoothing).mean()
    margin, decided = verdict.margin.detach(), labels != 0.5
    accuracy = agreement(margin[decided], labels[decided] - 0.5).mean()
    mass = verdict.answer_mass.detach().mean()
    return {"loss": loss, "accuracy": accuracy, "answer_mass": mass, "margin_std": margin.std()}
