"""A judge whose margins are brought to one scale, so that judges of different sharpness push equally hard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rewarddance.core.media import Media
from rewarddance.core.task import Request
from rewarddance.core.types import Comparison, RewardModel, Verdict
from rewarddance.reward.batches import in_batches
from rewarddance.reward.composite import Standard, fit_standard
from rewarddance.reward.objective import HasProblems


@torch.no_grad()
def standard_of(
    name: str,
    values: Callable[[Sequence[Comparison]], Tensor],
    prompts: Sequence[Request],
    media: Sequence[Sequence[Media]],
    criterion: str | None = None,
) -> Standard:
    """Means and deviations of a judge's margins or a part's values on fixed pictures, alone and in pairs of a prompt.

    Args:
        name: of the part or judge, for messages.
        values: gives the values of N comparisons, (N,), NaN where refused; these are left out.
        media: pictures of every prompt; each two neighbours are a pair.

    Raises:
        InputError: too few questions were answered, or all values are equal.
    """
    of_prompts = list(zip(prompts, media, strict=True))
    alone = [Comparison.of(p, m, None, criterion) for p, row in of_prompts for m in row]
    pairs = [Comparison.of(p, a, b, criterion) for p, row in of_prompts for a, b in zip(row[1:], row[:-1], strict=True)]
    single, paired = (in_batches(values, comparisons, f"part {name}") for comparisons in (alone, pairs))
    return fit_standard(name, single, paired)


@dataclass
class Standardised:
    """Divides a judge's margins by their spread on fixed pictures (`standard_of`); everything else is the judge's own.

    Margins of pairs are divided by the root mean square of pairs. From margins of single pictures the mean is
    subtracted, and the rest is divided by the standard deviation. A question of a kind that the standard does not know
    is refused.
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
        """Why the judge cannot be asked about a comparison; None if it can."""
        return self.inner.problem(comparison) if isinstance(self.inner, HasProblems) else None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while the object is being built
            raise AttributeError(name)
        return getattr(self.inner, name)
