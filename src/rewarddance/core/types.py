"""What flows between the floors: comparisons in, verdicts out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.media import Media


@dataclass(frozen=True)
class Comparison:
    """One question for a judge: is the candidate better than the reference for this prompt?

    Attributes:
        reference: None asks the pointwise question ("is this a good picture for the prompt?").
        criterion: what "better" means; a key of the context's instructions. None: what the judge was trained for.
        label: probability that the candidate is better (1 yes, 0 no, 0.5 tie), None where unknown.
        rationale: reasons in words, where known; they call the two pictures candidate and reference.
    """

    prompt: str
    candidate: Media
    reference: Media | None = None
    criterion: str | None = None
    label: float | None = None
    rationale: str | None = None

    def swapped(self) -> Comparison:
        """The same two samples with their roles exchanged."""
        if self.reference is None:
            raise ValueError("a pointwise comparison has nothing to swap")
        return replace(
            self,
            candidate=self.reference,
            reference=self.candidate,
            label=None if self.label is None else 1 - self.label,
            rationale=None if self.rationale is None else swap_roles(self.rationale),
        )


def swap_roles(rationale: str) -> str:
    """Reasons told of the other order: "candidate" and "reference" change places.

    >>> swap_roles("the candidate matches, the reference does not")
    'the reference matches, the candidate does not'
    """
    roles = {"candidate": "reference", "reference": "candidate"}
    roles |= {a.capitalize(): b.capitalize() for a, b in roles.items()} | {
        a.upper(): b.upper() for a, b in roles.items()
    }
    return re.sub(rf"\b({'|'.join(roles)})\b", lambda found: roles[found[0]], rationale)


@dataclass(frozen=True)
class Verdict:
    """Answers to N comparisons, all tensors (N,) fp32.

    Attributes:
        logp_yes, logp_no: log-probabilities of the answer words over the whole vocabulary (for a model without
            words: log-sigmoid of plus and minus its margin).
        answer_mass: probability of both answer words together; 1 for a model without words.
        disagreement: |m(x, ref) + m(ref, x)| / 2 where both orders were asked, otherwise None.
    """

    logp_yes: Tensor
    logp_no: Tensor
    answer_mass: Tensor
    disagreement: Tensor | None = None

    @property
    def margin(self) -> Tensor:
        """Log-odds of "better": unsaturated, for gradients and ranking."""
        return self.logp_yes - self.logp_no

    @property
    def reward(self) -> Tensor:
        """P(yes) over the two answer words, in [0, 1] (RewardDance, arXiv 2509.08826)."""
        return torch.sigmoid(self.margin)

    def __len__(self) -> int:
        return len(self.logp_yes)

    @classmethod
    def from_margin(
        cls, margin: Tensor, answer_mass: Tensor | None = None, disagreement: Tensor | None = None
    ) -> Verdict:
        """The verdict of a model that has a margin and no words."""
        mass = torch.ones_like(margin) if answer_mass is None else answer_mass
        return cls(F.logsigmoid(margin), F.logsigmoid(-margin), mass, disagreement)


@runtime_checkable
class RewardModel(Protocol):
    """Anything that judges. Wrappers (symmetrised, cached, remote, composite) hold another and add one thing."""

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        """Answer every comparison, in order. Raises `JudgementError` where an answer cannot be had."""
        ...
