"""Scalar judges: a linear head on the backbone's last state, one score a picture. The baselines.

`bradley_terry`, `bradley_terry_ties` and `ranking` have one output, `uncertainty` a mean and a log standard
deviation (HPSv3, arXiv 2508.03789), `regression` one output for every criterion. P(a better than b) is
sigmoid(s(a) - s(b)); with uncertainty its mean over both scores' distributions; with ties P(win) + P(tie) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.config import Paradigm
from rewarddance.reward.context import UNNAMED, Context
from rewarddance.reward.paradigms import gaussian_margin, with_ties
from rewarddance.vlm.engine import Engine

MIDDLE_RATING = 3.0
"""Where a regression head starts."""
MIN_LOG_SIGMA, MAX_LOG_SIGMA = -5.0, 2.0


@dataclass
class ScalarJudge:
    """Scores pictures one at a time; a margin is the difference, or the score where there is no reference."""

    engine: Engine
    context: Context
    head: nn.Linear
    paradigm: Paradigm = "bradley_terry"

    @classmethod
    def new(cls, engine: Engine, context: Context, paradigm: Paradigm = "bradley_terry") -> ScalarJudge:
        """With a head that starts at zero (regression: in the middle), so that training starts from indifference."""
        width = engine.backbone.model.config.text_config.hidden_size
        outputs = {"uncertainty": 2, "regression": len(context.wordings)}.get(paradigm, 1)
        head = nn.Linear(width, outputs).to(engine.backbone.device)
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, MIDDLE_RATING if paradigm == "regression" else 0.0)
        return cls(engine, context, head, paradigm)

    def outputs(self, comparisons: Sequence[Comparison]) -> Tensor:
        """What the head says of every candidate, (N, outputs) fp32; references are not looked at."""
        dialogs = [self.context.render(replace(c, reference=None)) for c in comparisons]
        states, bias = self.engine.answer_hidden(dialogs), self.head.bias
        out = F.linear(states, self.head.weight.float(), bias.float())  # sharded weights are gathered in bf16
        if self.paradigm == "regression":
            columns = torch.tensor(
                [list(self.context.wordings).index(c.criterion or UNNAMED) for c in comparisons], device=out.device
            )
            return out.gather(1, columns[:, None])
        return out

    def score(self, comparisons: Sequence[Comparison]) -> Tensor:
        """Score of every candidate (the mean where there is doubt), (N,)."""
        return self.outputs(comparisons)[:, 0]

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        """Every distinct (prompt, criterion, picture) is scored once."""
        questions: dict[tuple[str, str | None, str], int] = {}
        asked: list[Comparison] = []
        first: list[int] = []
        second: list[int] = []
        for c in comparisons:
            for media, rows in ((c.candidate, first), (c.reference, second)):
                if media is None:
                    rows.append(-1)
                    continue
                key = (c.prompt, c.criterion, media.key)
                if key not in questions:
                    questions[key] = len(asked)
                    asked.append(replace(c, candidate=media, reference=None))
                rows.append(questions[key])
        found = self.outputs(asked)
        mean = torch.cat([found[:, 0], found.new_zeros(1)])
        difference = mean[first] - mean[second]
        if self.paradigm == "bradley_terry_ties":
            alone = torch.tensor([c.reference is None for c in comparisons], device=difference.device)
            return Verdict.from_margin(torch.where(alone, difference, with_ties(difference)))
        if self.paradigm != "uncertainty":
            return Verdict.from_margin(difference)
        sigma = found[:, 1].clamp(MIN_LOG_SIGMA, MAX_LOG_SIGMA).exp()
        variance = torch.cat([sigma**2, found.new_zeros(1)])
        return Verdict.from_margin(gaussian_margin(difference, variance[first] + variance[second]))

    def trainable(self) -> dict[str, nn.Module]:
        return {"vlm": self.engine.backbone.module, "head": self.head}
