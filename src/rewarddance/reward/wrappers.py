"""Wrappers: each holds another judge and adds one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from rewarddance.core.errors import InputError
from rewarddance.core.types import Comparison, RewardModel, Verdict


@dataclass
class Symmetrised:
    """Asks both orders and averages the margins: m = (m(x, ref) - m(ref, x)) / 2, so that position cancels.

    Both orders go to the inner judge in one call, which lets its engine share work. Pointwise comparisons pass.
    """

    inner: RewardModel

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        paired = [c.reference is not None for c in comparisons]
        if not any(paired):
            return self.inner.judge(comparisons)
        if not all(paired):
            raise InputError("pairwise and pointwise comparisons in one call; ask them apart")
        n = len(comparisons)
        both = self.inner.judge([*comparisons, *(c.swapped() for c in comparisons)])
        forward, backward = both.margin[:n], both.margin[n:]
        mass = (both.answer_mass[:n] + both.answer_mass[n:]) / 2
        return Verdict.from_margin((forward - backward) / 2, mass, (forward + backward).abs() / 2)

    def trainable(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = self.inner.trainable()  # type: ignore[attr-defined]
        return modules
