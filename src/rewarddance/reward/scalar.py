"""A Bradley-Terry judge: one score per picture from a linear head on the same backbone. The baseline.

P(a better than b) = sigmoid(s(a) - s(b)), trained with -log sigmoid(s(w) - s(l)) (METHOD, section 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.context import Context
from rewarddance.vlm.engine import Engine


@dataclass
class ScalarJudge:
    """Scores pictures one at a time; a margin is the difference, or the score where there is no reference."""

    engine: Engine
    context: Context
    head: nn.Linear

    @classmethod
    def new(cls, engine: Engine, context: Context) -> ScalarJudge:
        """With a head that starts at zero, so that training starts from indifference."""
        width = engine.backbone.model.config.text_config.hidden_size
        head = nn.Linear(width, 1).to(engine.backbone.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return cls(engine, context, head)

    def score(self, comparisons: Sequence[Comparison]) -> Tensor:
        """Score of every candidate, (N,); references are not looked at."""
        dialogs = [self.context.render(replace(c, reference=None)) for c in comparisons]
        out: Tensor = self.head(self.engine.answer_hidden(dialogs))
        return out.squeeze(-1).float()

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        """Every distinct (prompt, criterion, picture) is scored once."""
        questions: dict[tuple[str, str, str], int] = {}
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
        scores = torch.cat([self.score(asked), torch.zeros(1, device=self.head.weight.device)])
        return Verdict.from_margin(scores[first] - scores[second])

    def trainable(self) -> dict[str, nn.Module]:
        return {"vlm": self.engine.backbone.module, "head": self.head}
