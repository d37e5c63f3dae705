"""Generative judges: the reward is P("yes") from the language-model head (RewardDance, arXiv 2509.08826)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rewarddance.core.errors import JudgementError
from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.context import Context
from rewarddance.reward.layouts import dialogs_of, orders
from rewarddance.vlm.engine import Engine

MIN_ANSWER_MASS = 0.5
"""Under this share of probability on the two answer words a judgement is refused at inference."""


@dataclass
class GenerativeJudge:
    """Asks a VLM. Pairwise where a comparison has a reference, pointwise where it has none.

    Args:
        strict: refuse judgements whose answer mass is under `MIN_ANSWER_MASS` (training switches this off and logs).
    """

    engine: Engine
    context: Context
    strict: bool = True

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        """One question each, in the given order only.

        The `listwise` layout asks in several orders of the pictures (one in training) and averages log-probabilities.

        Raises:
            JudgementError: the VLM puts less than half its probability on the answer words, or returns NaN.
        """
        n = len(comparisons)
        several = self.context.layout == "listwise" and self.strict
        ways = orders(n, self.context.permutations if several else 1)
        dialogs = [d for way in ways for d in dialogs_of(self.context, [comparisons[i] for i in way])]
        found = self.engine.answer_logits(dialogs, (self.context.yes, self.context.no))
        back = torch.tensor(ways, device=found.logp.device).argsort(1)
        logp = found.logp.view(len(ways), n, 2).gather(1, back[..., None].expand(-1, -1, 2)).mean(0)
        mass = found.mass.view(len(ways), n).gather(1, back).mean(0)
        verdict = Verdict(logp[:, 0], logp[:, 1], mass)
        if self.strict:
            _refuse_unclear(verdict, comparisons)
        return verdict

    def trainable(self) -> dict[str, nn.Module]:
        return {"vlm": self.engine.backbone.module}


def _refuse_unclear(verdict: Verdict, comparisons: Sequence[Comparison]) -> None:
    mass = verdict.answer_mass.detach()
    bad = (~(mass >= MIN_ANSWER_MASS)).nonzero().flatten().tolist()  # NaN is bad too
    if bad:
        first = comparisons[bad[0]]
        raise JudgementError(
            f"{len(bad)} of {len(comparisons)} questions were not answered with yes or no (comparison {bad[0]}, prompt "
            f"{first.prompt[:60]!r}: probability {float(mass[bad[0]]):.2f}); train the judge, or check its answer words"
        )
