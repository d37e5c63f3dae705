"""Parts of a composite reward. Each answers comparisons with raw values of its own scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from rewarddance.core.media import Media
from rewarddance.core.types import Comparison
from rewarddance.reward.judge import Judge
from rewarddance.reward.learned import LearnedJudge
from rewarddance.reward.problems import unusable
from rewarddance.reward.remote import RemoteJudge

Measure = Callable[[Sequence[str], Sequence[Media]], Tensor]
"""N prompts and N pictures to N values, (N,)."""


@dataclass(frozen=True)
class PartValues:
    """Raw values (N,), NaN where the part refused, and the reasons by index."""

    values: Tensor
    refused: Mapping[int, str] = field(default_factory=dict)


class Part(Protocol):
    def values(self, comparisons: Sequence[Comparison]) -> PartValues:
        """The picture's value if there is no reference, else how much better the candidate is; differentiable."""
        ...


@dataclass
class JudgePart:
    """A judge's margin by one criterion."""

    judge: Judge | LearnedJudge | RemoteJudge
    criterion: str | None = None

    def values(self, comparisons: Sequence[Comparison]) -> PartValues:
        verdict = self.judge.judge([replace(c, criterion=self.criterion) for c in comparisons])
        return PartValues(verdict.margin, verdict.refused)


@dataclass
class MeasurePart:
    """A measure of single pictures; with a reference, the difference of two values."""

    measure: Measure

    def values(self, comparisons: Sequence[Comparison]) -> PartValues:
        refused = {i: why for i, c in enumerate(comparisons) if (why := unusable(c)) is not None}
        rows = [i for i in range(len(comparisons)) if i not in refused]
        out = torch.full((len(comparisons),), torch.nan)
        if not rows:
            return PartValues(out, refused)
        usable = [comparisons[i] for i in rows]
        compared = [k for k, c in enumerate(usable) if c.reference is not None]
        pictures = [c.candidate for c in usable] + [r for c in usable if (r := c.reference) is not None]
        measured = self.measure([c.prompt for c in usable] + [usable[k].prompt for k in compared], pictures).float()
        with_reference = torch.tensor(compared, dtype=torch.long, device=measured.device)
        values = measured[: len(usable)].index_add(0, with_reference, measured[len(usable) :], alpha=-1)
        out = out.to(values.device).index_copy(0, torch.tensor(rows, device=values.device), values)
        broken = {rows[k]: "its value is not a number" for k in (~values.isfinite()).nonzero().flatten().tolist()}
        return PartValues(out.masked_fill(~out.isfinite(), torch.nan), refused | broken)
