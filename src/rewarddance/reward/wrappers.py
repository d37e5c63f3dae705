"""Wrappers: each holds another judge and adds one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rewarddance.core.types import Comparison, RewardModel, Verdict


@dataclass
class Symmetrised:
    """Asks both orders and averages the margins: m = (m(x, ref) - m(ref, x)) / 2, so that a bias to a position cancels.

    Both orders go to the inner judge in one call, so that its engine can share work. A pointwise comparison is asked
    once. An item is refused if either order is.
    """

    inner: RewardModel

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        pairs = [i for i, c in enumerate(comparisons) if c.reference is not None]
        if not pairs:
            return self.inner.judge(comparisons)
        n = len(comparisons)
        both = self.inner.judge([*comparisons, *(comparisons[i].swapped() for i in pairs)])
        rows = torch.tensor(pairs, device=both.margin.device)
        forward, backward = both.margin[:n], both.margin[n:]
        margin = forward.index_copy(0, rows, (forward[rows] - backward) / 2)
        mass = both.answer_mass[:n].index_copy(0, rows, (both.answer_mass[:n][rows] + both.answer_mass[n:]) / 2)
        gap = torch.full_like(forward, torch.nan).index_copy(0, rows, (forward[rows] + backward).abs() / 2)
        return Verdict.from_margin(margin, mass, gap).refuse(_reasons(both, n, pairs))


@dataclass
class PointwiseDifference:
    """A pointwise judge that compares: the margin is the difference of two pointwise margins.

    An item is refused if the judge refuses either picture.
    """

    inner: RewardModel

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        pairs = [i for i, c in enumerate(comparisons) if c.reference is not None]
        if not pairs:
            return self.inner.judge(comparisons)
        n = len(comparisons)
        alone = [replace(c, reference=None) for c in comparisons]
        references = [replace(c, candidate=c.reference, reference=None) for c in comparisons if c.reference is not None]
        both = self.inner.judge([*alone, *references])
        rows = torch.tensor(pairs, device=both.margin.device)
        margin = both.margin[:n].index_add(0, rows, both.margin[n:], alpha=-1)
        mass = both.answer_mass[:n].index_copy(0, rows, (both.answer_mass[:n][rows] + both.answer_mass[n:]) / 2)
        return Verdict.from_margin(margin, mass).refuse(_reasons(both, n, pairs))


def _reasons(both: Verdict, n: int, pairs: Sequence[int]) -> dict[int, str]:
    """Reasons of N items, each asked once as item i, and those in `pairs` a second time after them."""
    return {(i if i < n else pairs[i - n]): why for i, why in sorted(both.refused.items(), reverse=True)}
