"""A judge whose margins are brought to one scale, so that judges of different sharpness push equally hard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rewarddance.core.media import Media
from rewarddance.core.task import Request
from rewarddance.core.types import Comparison, RewardModel, Verdict
from rewarddance.reward.composite import Standard, fit_standard
from rewarddance.reward.objective import HasProblems

AT_ONCE = 256
"""Comparisons of one call while a standard is measured."""


@torch.no_grad()
def standard_of(
    judge: RewardModel, prompts: Sequence[Request], media: Sequence[Sequence[Media]], criterion: str
) -> Standard:
    """How a judge's margins spread on fixed pictures, alone and in pairs of one prompt.

    Args:
        media: two or more pictures of every prompt; the first two are the pair. Refused questions are left out.

    Raises:
        InputError: the judge answered too few questions, or all margins are equal.
    """
    alone = [Comparison.of(p, m, None, criterion) for p, own in zip(prompts, media, strict=True) for m in own]
    pairs = [Comparison.of(p, own[0], own[1], criterion) for p, own in zip(prompts, media, strict=True)]
    margins = []
    for asked in (alone, pairs):
        parts = [judge.judge(asked[i : i + AT_ONCE]).margin.cpu() for i in range(0, len(asked), AT_ONCE)]
        margins.append(torch.cat(parts))
    return fit_standard("judge", margins[0], margins[1])


@dataclass
class Standardised:
    """Divides a judge's margins by their spread on fixed pictures (`standard_of`); everything else is the judge's own.

    Pairs are divided by the root mean square of pairs. Of single pictures the mean is taken away first, and the
    standard deviation divides. A question of a kind that the standard does not know is refused.
    """

    inner: RewardModel
    standard: Standard

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        verdict = self.inner.judge(comparisons)
        device = verdict.logp_yes.device
        paired = torch.tensor([c.reference is not None for c in comparisons], dtype=torch.bool, device=device)
        margin = self.standard.standardise(verdict.margin, paired)
        unknown = (margin.isnan() & verdict.answered).nonzero().flatten().tolist()
        reasons = {**verdict.refused, **dict.fromkeys(unknown, "the standard has no spread for this kind of question")}
        gap, swapped = verdict.disagreement, verdict.swapped_margin
        made = replace(
            Verdict.from_margin(margin, verdict.answer_mass),
            disagreement=None if gap is None else gap / (self.standard.paired_std or torch.nan),
            parts=verdict.parts,
            # the swapped margin of a single picture is minus its margin, so the mean is taken from the negative
            swapped_margin=None if swapped is None else -self.standard.standardise(-swapped, paired),
        )
        return made.refuse(reasons)

    def problem(self, comparison: Comparison) -> str | None:
        """Why the judge cannot be asked about a comparison; None where it can."""
        return self.inner.problem(comparison) if isinstance(self.inner, HasProblems) else None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while the object is being built
            raise AttributeError(name)
        return getattr(self.inner, name)
