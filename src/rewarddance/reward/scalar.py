"""Scalar judges: a linear head on the backbone's last state, one score a picture. The baselines.

`bradley_terry`, `bradley_terry_ties` and `ranking` have one output, `uncertainty` has a mean and a log standard
deviation (HPSv3, arXiv 2508.03789), `regression` one output for every criterion. P(a better than b) is
sigmoid(s(a) - s(b)); with uncertainty its mean over the distributions of both scores; with ties P(win) + P(tie) / 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.config import Paradigm, columns_of
from rewarddance.reward.context import UNNAMED, Context
from rewarddance.reward.paradigms import FIRST_TIE_STRENGTH, gaussian_margin, with_ties
from rewarddance.reward.problems import problem_of
from rewarddance.vlm.engine import Engine

MIDDLE_RATING = 3.0
"""Where a regression head starts."""
MIN_LOG_STD, MAX_LOG_STD = -5.0, 2.0
MAX_TIES = 0.99
"""Largest share of ties that `start_ties` takes as it is."""
RATE_FACTORS = {"head.tie_strength": 50.0}
"""Factors of the learning rate by parameter. AdamW moves a parameter by about the learning rate in a step, and the
strength of ties must move by about 1 in a training."""


class Head(nn.Linear):
    """A linear head that starts at zero weights. For `bradley_terry_ties` it also has `tie_strength` r, with
    k = 1 + exp(r)."""

    def __init__(self, width: int, num_outputs: int, bias: float, ties: bool) -> None:
        super().__init__(width, num_outputs)
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, bias)
        if ties:
            self.tie_strength = nn.Parameter(torch.tensor([math.log(FIRST_TIE_STRENGTH - 1)]))


@dataclass
class ScalarJudge:
    """Scores pictures one at a time. The margin is the log-odds that the candidate is better than the reference, or the
    candidate's score where there is no reference.

    Attributes:
        columns: names of the head's outputs, in order.
    """

    engine: Engine
    context: Context
    head: Head
    paradigm: Paradigm
    columns: tuple[str, ...]

    @classmethod
    def new(
        cls, engine: Engine, context: Context, paradigm: Paradigm = "bradley_terry", columns: tuple[str, ...] = ()
    ) -> ScalarJudge:
        """With a head that gives 0 (regression: the middle rating) for every picture."""
        width = engine.backbone.model.config.text_config.hidden_size
        columns = columns or columns_of(paradigm, context)
        bias = MIDDLE_RATING if paradigm == "regression" else 0.0
        head = Head(width, len(columns), bias, paradigm == "bradley_terry_ties").to(engine.backbone.device)
        return cls(engine, context, head, paradigm, columns)

    def problem(self, comparison: Comparison) -> str | None:
        """Why this comparison cannot be asked; None where it can."""
        alone = replace(comparison, reference=None)
        if problem := problem_of(alone, self.context, self.engine):
            return problem
        if comparison.reference is not None:
            return problem_of(replace(alone, candidate=comparison.reference), self.context, self.engine)
        return None

    def outputs(self, comparisons: Sequence[Comparison]) -> Tensor:
        """The head's outputs for every candidate, (N, outputs) fp32; for `regression` the asked criterion's, (N, 1).
        References are not read."""
        dialogs = [self.context.render(replace(c, reference=None)) for c in comparisons]
        states, bias = self.engine.answer_hidden(dialogs), self.head.bias
        out = F.linear(states, self.head.weight.float(), bias.float())  # FSDP may gather the weights in bf16
        if self.paradigm == "regression":
            names = [self.columns.index(c.criterion or UNNAMED) for c in comparisons]
            return out.gather(1, torch.tensor(names, device=out.device)[:, None])
        return out

    def score(self, comparisons: Sequence[Comparison]) -> Tensor:
        """Score of every candidate (with uncertainty its mean), (N,)."""
        return self.outputs(comparisons)[:, 0]

    @property
    def tie_strength(self) -> Tensor:
        """k of the Rao-Kupper model, above 1, (1,); learnt with `bradley_terry_ties`."""
        return 1 + self.head.tie_strength.float().clamp(-12, 12).exp()

    @torch.no_grad()
    def start_ties(self, share: float) -> None:
        """Set k so that two equal pictures tie with probability `share`: k = (1 + share) / (1 - share).

        This is the likeliest k if no picture is better than another.
        """
        share = min(share, MAX_TIES)
        self.head.tie_strength.fill_(math.log(2 * share / (1 - share)))

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        """Every distinct (prompt, criterion, picture) is scored once."""
        rows_of: dict[tuple[str, str | None, str], int] = {}
        singles: list[Comparison] = []
        first: list[int] = []
        second: list[int] = []
        for c in comparisons:
            for media, rows in ((c.candidate, first), (c.reference, second)):
                if media is None:
                    rows.append(-1)
                    continue
                key = (c.prompt, c.criterion, media.key)
                if key not in rows_of:
                    rows_of[key] = len(singles)
                    singles.append(replace(c, candidate=media, reference=None))
                rows.append(rows_of[key])
        outputs = self.outputs(singles)
        mean = torch.cat([outputs[:, 0], outputs.new_zeros(1)])  # row -1 stands for a missing reference
        difference = mean[first] - mean[second]
        if self.paradigm == "bradley_terry_ties":
            alone = torch.tensor([c.reference is None for c in comparisons], device=difference.device)
            verdict = Verdict.from_margin(torch.where(alone, difference, with_ties(difference, self.tie_strength)))
            ties = self.tie_strength.expand_as(difference)
            return replace(verdict, parts={"difference": difference, "tie_strength": ties})
        if self.paradigm != "uncertainty":
            return Verdict.from_margin(difference)
        std = outputs[:, 1].clamp(MIN_LOG_STD, MAX_LOG_STD).exp()
        variance = torch.cat([std**2, outputs.new_zeros(1)])
        return Verdict.from_margin(gaussian_margin(difference, variance[first] + variance[second]))

    def trainable(self) -> dict[str, nn.Module]:
        return {"vlm": self.engine.backbone.module, "head": self.head}
