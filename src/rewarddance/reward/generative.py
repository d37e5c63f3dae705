"""Generative judges: the reward is P("yes") from the language-model head (RewardDance, arXiv 2509.08826)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rewarddance.core.errors import JudgementError
from rewarddance.core.media import Dialog
from rewarddance.core.parallel import max_over_processes
from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.context import VERDICT, Context
from rewarddance.reward.layouts import dialogs_of, orders
from rewarddance.vlm.engine import Engine

MIN_ANSWER_MASS = 0.5
"""Under this share of probability on the two answer words a judgement is refused at inference."""


@dataclass
class GenerativeJudge:
    """Asks a VLM. Pairwise where a comparison has a reference, pointwise where it has none.

    Args:
        strict: refuse judgements whose answer mass is under `MIN_ANSWER_MASS` (training switches this off and logs).
        temperature: what log-odds of the answers are divided by; their mass stays as it is.
    """

    engine: Engine
    context: Context
    strict: bool = True
    temperature: float = 1.0

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        """One question each, in the given order only.

        The `listwise` layout asks in several orders of the pictures (one in training) and averages log-probabilities;
        `reason_first` writes several reasons (one in training) and averages probabilities.

        Raises:
            JudgementError: the VLM puts less than half its probability on the answer words, or returns NaN.
        """
        ask = self._after_reasons if self.context.cot == "reason_first" else self._asked
        verdict = ask(comparisons)
        if self.strict:
            _refuse_unclear(verdict, comparisons)
        return verdict

    def _asked(self, comparisons: Sequence[Comparison]) -> Verdict:
        n = len(comparisons)
        several = self.context.layout == "listwise" and self.strict
        ways = orders(n, self.context.permutations if several else 1)
        dialogs = [d for way in ways for d in dialogs_of(self.context, [comparisons[i] for i in way])]
        found = self.engine.answer_logits(dialogs, (self.context.yes, self.context.no))
        back = torch.tensor(ways, device=found.logp.device).argsort(1)
        logp = self._tempered(found.logp).view(len(ways), n, 2).gather(1, back[..., None].expand(-1, -1, 2)).mean(0)
        return Verdict(logp[:, 0], logp[:, 1], found.mass.view(len(ways), n).gather(1, back).mean(0))

    def _after_reasons(self, comparisons: Sequence[Comparison]) -> Verdict:
        k = self.context.samples if self.strict else 1
        dialogs = [d for d in dialogs_of(self.context, comparisons) for _ in range(k)]
        written = self._reasons(dialogs, temperature=1.0 if k > 1 else 0.0)
        tails = [self.engine.tokens(f"{r.split(VERDICT.strip())[0].strip()}{VERDICT}") for r in written]
        found = self.engine.answer_logits(dialogs, (f" {self.context.yes}", f" {self.context.no}"), tails)
        logp = self._tempered(found.logp).view(-1, k, 2).logsumexp(1) - math.log(k)
        return Verdict(logp[:, 0], logp[:, 1], found.mass.view(-1, k).mean(1))

    def _reasons(self, dialogs: Sequence[Dialog], temperature: float, chunk: int = 64) -> list[str]:
        """What is written after each dialog, so many at once as the engine takes tokens in a pass."""
        most, found = self.context.max_reason_tokens, list[str]()
        encoder = self.engine.backbone.encoder
        longest = most + max(len(encoder.chat([("user", d)]).ids) for d in dialogs)
        chunk = max(1, min(chunk, self.engine.budget // longest))
        starts = range(0, len(dialogs), chunk)
        # processes that share weights write together, so those with less to write do some of it twice
        calls = max_over_processes(len(starts)) if self.engine.lockstep else len(starts)
        for i in [*starts, *[0] * (calls - len(starts))]:
            written = self.engine.backbone.generate(dialogs[i : i + chunk], most, temperature)
            found += written if len(found) < len(dialogs) else []
        return found

    def explain(self, comparisons: Sequence[Comparison]) -> list[str]:
        """What the judge says when it is let speak, greedily: verdict and reasons where it was taught to give them."""
        return self._reasons(dialogs_of(self.context, comparisons), temperature=0.0)

    def learn(self, comparisons: Sequence[Comparison]) -> tuple[Verdict, Tensor]:
        """For training: verdicts, and the mean log-probability of each rationale's tokens, (N,), NaN without one.

        With chain of thought, verdicts stand behind (`reason_first`) or before (`answer_first`) the given rationale, or
        an empty one where none is given: always where inference reads them.
        """
        nothing = torch.full((len(comparisons),), torch.nan)
        told = self.context.cot == "reason_first" or any(c.rationale for c in comparisons)
        if self.context.cot == "none" or not told:
            verdict = self._asked(comparisons)
            return verdict, nothing.to(verdict.margin.device)
        words = (self.context.yes, self.context.no)
        if self.context.cot == "reason_first":
            words = (f" {words[0]}", f" {words[1]}")
        tails, places = [], []
        for c in comparisons:
            before, verdict_word, after = self.context.answer((c.label or 0.0) >= 0.5, c.rationale or "")
            start = self.engine.tokens(before)
            rest = [*self.engine.tokens(after), *self.engine.end_of_turn] if c.rationale else []
            tails.append([*start, self.engine.word_id(verdict_word), *rest])
            places.append(len(start))
        answers, reasons = self.engine.answer_and_reasons(dialogs_of(self.context, comparisons), tails, places, words)
        worth = [
            r.mean() if c.rationale else r.new_tensor(torch.nan) for r, c in zip(reasons, comparisons, strict=True)
        ]
        logp = self._tempered(answers.logp)
        return Verdict(logp[:, 0], logp[:, 1], answers.mass), torch.stack(worth)

    def _tempered(self, logp: Tensor) -> Tensor:
        """(N, 2): the same probability of both words together, their log-odds divided by the temperature."""
        if self.temperature == 1:
            return logp
        return (logp / self.temperature).log_softmax(-1) + logp.logsumexp(-1, keepdim=True)

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
