"""Feynman-Kac steering (Singhal et al., arXiv 2501.06848): particles whose predicted pictures are better multiply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rewarddance.core.protocols import Generator
from rewarddance.core.task import Request
from rewarddance.search.config import FkConfig
from rewarddance.search.run import Candidates, Result, SearchRun, pick
from rewarddance.search.verifier import Verifier


@dataclass(frozen=True)
class Weights:
    """The weights of K particles for each of P prompts. All tensors are (P, K) fp64.

    Attributes:
        log_weight: since the last resampling.
        log_product: of all potentials on the way of a particle.
        reward: the latest reward, the largest one, or their sum; the potential is computed from it.
    """

    log_weight: Tensor
    log_product: Tensor
    reward: Tensor

    @classmethod
    def first(cls, rows: int, num: int, settings: FkConfig) -> Weights:
        zero = torch.zeros(rows, num, dtype=torch.float64)
        return cls(zero, zero, zero - torch.inf if settings.potential == "max" else zero)

    def after(self, scores: Tensor, settings: FkConfig, *, last: bool = False) -> Weights:
        """The weights after the potentials of one judgement.

        With x the change, the maximum or the sum of the rewards, the potential is exp(scale x). The last one is
        exp(scale reward) over the product of those before, so that the product of all is exp(scale reward) in each of
        the three cases. A refused judgement has the potential 1.

        Args:
            scores: (P, K), NaN where refused.
        """
        answered, scores = ~scores.isnan(), scores.double()
        if settings.potential == "difference":
            reward, x = scores, scores - self.reward
        elif settings.potential == "max":
            reward = x = torch.maximum(self.reward, scores)
        else:
            reward = x = self.reward + scores
        log_potential = settings.scale * scores - self.log_product if last else settings.scale * x
        log_potential = torch.where(answered, log_potential, 0.0)
        return Weights(
            self.log_weight + log_potential,
            self.log_product + log_potential,
            torch.where(answered, reward, self.reward),
        )

    def resampled(self, index: Tensor, which: Tensor) -> Weights:
        """The weights of the particles at `index`. Prompts of the mask `which` (P,) start again from equal weights."""
        moved = Weights(*(v.gather(1, index) for v in (self.log_weight, self.log_product, self.reward)))
        return replace(moved, log_weight=torch.where(which[:, None], 0.0, moved.log_weight))

    def effective_size(self) -> Tensor:
        """1 / sum of squared normalised weights, (P,), from 1 to K."""
        return 1 / self.log_weight.softmax(1).square().sum(1)


def systematic(log_weight: Tensor, uniform: Tensor) -> Tensor:
    """Systematic resampling: K positions (i + uniform) / K in the cumulated weights.

    Args:
        log_weight: (P, K).
        uniform: (P,) in [0, 1).

    Returns:
        (P, K) indices of ancestors, in rising order.
    """
    num = log_weight.shape[1]
    positions = (torch.arange(num, dtype=torch.float64) + uniform.double()[:, None]) / num
    return torch.searchsorted(log_weight.softmax(1).cumsum(1), positions).clamp(max=num - 1)


@torch.no_grad()
def fk_steering(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Request],
    *,
    nfe: int,
    num_steps: int = 10,
    seed: int = 0,
    settings: FkConfig = FkConfig(),
    batch: int = 128,
) -> list[Result]:
    """Sample K particles of every prompt by the SDE. At some steps the pictures that the particles predict are judged.
    If the effective sample size is then small, particles are drawn again by their weights.

    A round-robin verifier gives rewards up to a constant of its group. The constant cancels for the potentials
    `difference` and `sum`, not for `max`.

    Raises:
        BudgetError: the budget does not allow one particle.
    """
    run = SearchRun(generator, verifier, prompts, nfe, num_steps, seed, batch)
    z = run.noise(run.num_samples)
    weights = Weights.first(len(prompts), run.num_samples, settings)
    judged_steps = settings.judged_steps(num_steps)
    for step in run.trace(z, run.times, settings.noise):
        means = step.policy.mean.view_as(z)
        if step.index in judged_steps:
            clean = step.clean.view_as(z)
            weights = weights.after(run.judged(clean, clean).scores, settings)
            index, weights = _ancestors(run, weights, settings)
            means = pick(means, index)
        z = means
        if bool((step.policy.std > 0).all()):
            z = means + step.policy.std * run.noise(run.num_samples)
        step.next = z.flatten(0, 1)
    finished = run.judged(z, z)
    return run.results(_picked(run, finished, weights.after(finished.scores, settings, last=True), settings))


def _ancestors(run: SearchRun, weights: Weights, settings: FkConfig) -> tuple[Tensor, Weights]:
    """For each particle the one that it continues from, (P, K), and the weights after that."""
    num = weights.log_weight.shape[1]
    which = weights.effective_size() < settings.least_ess * num
    drawn = systematic(weights.log_weight, run.uniform())
    index = torch.where(which[:, None], drawn, torch.arange(num))
    return index, weights.resampled(index, which)


def _picked(run: SearchRun, finished: Candidates, weights: Weights, settings: FkConfig) -> Candidates:
    if settings.pick == "best":
        return finished.best()
    cumulated = weights.log_weight.softmax(1).cumsum(1)
    index = torch.searchsorted(cumulated, run.uniform().double()[:, None]).clamp(max=cumulated.shape[1] - 1)
    return finished.take(index)
