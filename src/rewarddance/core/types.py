"""The score port: comparisons in, verdicts out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.errors import JudgementError
from rewarddance.core.media import Media
from rewarddance.core.task import Request, picture_of, text_of

MAX_REFUSED = 0.05
"""An alignment or an evaluation ends with an error if a judge refuses more than this share of its questions."""


@dataclass(frozen=True)
class Comparison:
    """One question for a judge: is the candidate better than the reference for this prompt?

    Attributes:
        reference: None asks the pointwise question ("is this a good picture for the prompt?").
        criterion: what "better" means; a key of the judge's criteria. None: what the judge was trained for.
        label: probability that the candidate is better (1 yes, 0 no, 0.5 tie), None if unknown.
        rationale: reasons in words, where known; they call the two pictures candidate and reference.
        condition: the picture that both samples were generated from (image-to-video, editing), None without one.
    """

    prompt: str
    candidate: Media
    reference: Media | None = None
    criterion: str | None = None
    label: float | None = None
    rationale: str | None = None
    condition: Media | None = None

    @classmethod
    def of(
        cls, request: Request, candidate: Media, reference: Media | None = None, criterion: str | None = None
    ) -> Comparison:
        """A comparison about a sample of a generator's request, with the request's picture as `condition`."""
        return cls(text_of(request), candidate, reference, criterion, condition=picture_of(request))

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
    """Exchange the words "candidate" and "reference".

    >>> swap_roles("the candidate matches, the reference does not")
    'the reference matches, the candidate does not'
    """
    lower = {"candidate": "reference", "reference": "candidate"}
    roles = {form(a): form(b) for form in (str, str.capitalize, str.upper) for a, b in lower.items()}
    return re.sub(rf"\b({'|'.join(roles)})\b", lambda match: roles[match[0]], rationale)


@dataclass(frozen=True)
class Verdict:
    """Answers to N comparisons. All tensors are (N,) fp32; a refused item is NaN in all of them but `answer_mass`.

    Attributes:
        logp_yes, logp_no: log-probabilities of the answer words over the whole vocabulary. A model without words gives
            log-sigmoid of plus and minus its margin.
        answer_mass: probability of both answer words together; 1 for a model without words, NaN where nothing was
            asked.
        disagreement: |m(x, ref) + m(ref, x)| / 2 where both orders were asked, otherwise None.
        refused: the reason of every item that was not answered, by index.
        parts: named components of a composite reward.
        swapped_margin: margin of the swapped comparison, if that is not -margin (conservative ensembles), else None.
    """

    logp_yes: Tensor
    logp_no: Tensor
    answer_mass: Tensor
    disagreement: Tensor | None = None
    refused: Mapping[int, str] = field(default_factory=dict)
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    swapped_margin: Tensor | None = None

    @property
    def margin(self) -> Tensor:
        """Log-odds of "better": unsaturated, for gradients and ranking."""
        return self.logp_yes - self.logp_no

    @property
    def reward(self) -> Tensor:
        """P(yes) over the two answer words, in [0, 1] (RewardDance, arXiv 2509.08826)."""
        return torch.sigmoid(self.margin)

    @property
    def balanced_margin(self) -> Tensor:
        """Log-odds that change their sign when the pair is swapped: (margin - swapped_margin) / 2.

        If `swapped_margin` is None, this is `margin`. The margins of a conservative ensemble are lower in both orders.
        """
        return self.margin if self.swapped_margin is None else (self.margin - self.swapped_margin) / 2

    @property
    def win_rate(self) -> Tensor:
        """P(the candidate is better than the reference), in [0, 1]: sigmoid of the balanced margin.

        The rates of a pair and of the swapped pair sum to 1. The rewards of a conservative ensemble do not.
        """
        return torch.sigmoid(self.balanced_margin)

    @property
    def answered(self) -> Tensor:
        """True where an item was answered, (N,)."""
        mask = torch.ones(len(self), dtype=torch.bool, device=self.logp_yes.device)
        mask[list(self.refused)] = False
        return mask

    def __len__(self) -> int:
        return len(self.logp_yes)

    def or_raise(self, comparisons: Sequence[Comparison]) -> Verdict:
        """The verdict itself.

        Raises:
            JudgementError: an item was refused; names the first one.
        """
        if self.refused:
            first = min(self.refused)
            prompt = comparisons[first].prompt
            raise JudgementError(
                f"{len(self.refused)} of {len(self)} comparisons were refused; comparison {first} (prompt "
                f"{prompt[:60]!r}): {self.refused[first]}"
            )
        return self

    def tempered(self, temperature: float) -> Verdict:
        """The same probability of both words together, with the log-odds divided by `temperature`."""
        if temperature == 1:
            return self
        both = torch.stack([self.logp_yes, self.logp_no])
        yes, no = (both / temperature).log_softmax(0) + both.logsumexp(0)
        gap, swapped = (None if x is None else x / temperature for x in (self.disagreement, self.swapped_margin))
        return replace(self, logp_yes=yes, logp_no=no, disagreement=gap, swapped_margin=swapped)

    def refuse(self, reasons: Mapping[int, str]) -> Verdict:
        """The verdict with further items refused: their log-probabilities become NaN, without a gradient."""
        if not reasons:
            return self
        rows = torch.tensor(sorted(reasons), device=self.logp_yes.device)

        def blanked(values: Tensor) -> Tensor:
            return values.index_fill(0, rows, torch.nan)

        return replace(
            self,
            logp_yes=blanked(self.logp_yes),
            logp_no=blanked(self.logp_no),
            disagreement=None if self.disagreement is None else blanked(self.disagreement),
            parts={k: blanked(v) for k, v in self.parts.items()},
            swapped_margin=None if self.swapped_margin is None else blanked(self.swapped_margin),
            refused={**self.refused, **reasons},
        )

    @classmethod
    def from_margin(
        cls, margin: Tensor, answer_mass: Tensor | None = None, disagreement: Tensor | None = None
    ) -> Verdict:
        """The verdict of a model that has a margin and no words."""
        mass = torch.ones_like(margin) if answer_mass is None else answer_mass
        return cls(F.logsigmoid(margin), F.logsigmoid(-margin), mass, disagreement)

    @classmethod
    def all_refused(cls, reasons: Mapping[int, str]) -> Verdict:
        """The verdict on N items that could not be asked; `reasons` has N entries."""
        nothing = torch.full((len(reasons),), torch.nan)
        return cls(nothing, nothing, nothing, None, dict(reasons))

    def scattered(self, rows: Sequence[int], reasons: Mapping[int, str]) -> Verdict:
        """This verdict's items at `rows` of a longer list, whose other items are refused for `reasons`."""
        if not reasons:
            return self
        num, place = len(self) + len(reasons), torch.tensor(rows, device=self.logp_yes.device)

        def spread(values: Tensor) -> Tensor:
            return values.new_full((num,), torch.nan).index_copy(0, place, values)

        return Verdict(
            spread(self.logp_yes),
            spread(self.logp_no),
            spread(self.answer_mass),
            None if self.disagreement is None else spread(self.disagreement),
            {**{rows[i]: why for i, why in self.refused.items()}, **reasons},
            {name: spread(values) for name, values in self.parts.items()},
            None if self.swapped_margin is None else spread(self.swapped_margin),
        )


def judge_answerable(
    comparisons: Sequence[Comparison],
    problem: Callable[[Comparison], str | None],
    answer: Callable[[Sequence[Comparison]], Verdict],
) -> Verdict:
    """The verdict on all comparisons: those with a problem are refused, and so are answers that are not finite.

    Args:
        problem: why a comparison cannot be asked; None if it can.
        answer: the verdict on comparisons without a problem; called once, or not at all if there are none.
    """
    reasons = {i: why for i, c in enumerate(comparisons) if (why := problem(c)) is not None}
    rows = [i for i in range(len(comparisons)) if i not in reasons]
    if not rows:
        return Verdict.all_refused(reasons)
    verdict = answer([comparisons[i] for i in rows])
    broken = (~torch.isfinite(verdict.margin.detach()) & verdict.answered).nonzero().flatten().tolist()
    return verdict.refuse(dict.fromkeys(broken, "the model's answer is not a number")).scattered(rows, reasons)


@runtime_checkable
class RewardModel(Protocol):
    """Anything that judges. Wrappers (symmetrised, cached, remote, composite) hold another judge and add one thing."""

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        """Answer every comparison, in order.

        An item that cannot be answered (an unclear answer, a prompt that is too long) is refused: it is NaN in the
        verdict, with its reason under `refused`. It never raises an error and never changes another item.
        """
        ...
