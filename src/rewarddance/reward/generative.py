"""Generative judges: the reward is P("yes") of the language-model head (RewardDance, arXiv 2509.08826)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rewarddance.core.media import Dialog
from rewarddance.core.parallel import all_reduce_max
from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.context import VERDICT, Context
from rewarddance.reward.layouts import dialogs_of, example_turns, orders
from rewarddance.reward.problems import problem_of
from rewarddance.vlm.engine import Engine

MIN_ANSWER_MASS = 0.5
"""At inference an answer with less probability on both answer words together is refused."""


@dataclass
class GenerativeJudge:
    """Asks a VLM: pairwise if a comparison has a reference, pointwise if it has none.

    Args:
        strict: refuse answers whose mass is under `MIN_ANSWER_MASS` (inference). Training logs the mass instead.
        temperature: the log-odds of the answers are divided by it; their mass stays as it is.
        examples: labelled comparisons that stand before every question.
    """

    engine: Engine
    context: Context
    strict: bool = True
    temperature: float = 1.0
    examples: Sequence[Comparison] = ()

    def __post_init__(self) -> None:
        self.prefix = example_turns(self.context, self.examples)
        self.words = [self.context.words.yes, self.context.words.no]
        if self.context.cot == "reason_first":  # after a reason the verdict follows a blank
            self.words = [tuple(dict.fromkeys(f" {s.strip()}" for s in w)) for w in self.words]

    def problem(self, comparison: Comparison) -> str | None:
        """Why this comparison cannot be asked; None if it can."""
        return problem_of(comparison, self.context, self.engine, self.prefix)

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        """One question each, in the given order only; every comparison must be without a `problem`.

        The `listwise` layout asks in several orders of the pictures (training: one) and averages log-probabilities.
        `reason_first` writes several reasons (training: one) and averages probabilities.
        """
        ask = self._ask_after_reasons if self.context.cot == "reason_first" else self._ask
        verdict = ask(comparisons)
        return verdict.refuse(_unclear(verdict)) if self.strict else verdict

    def _dialogs(self, comparisons: Sequence[Comparison]) -> list[Dialog]:
        return dialogs_of(self.context, comparisons, self.prefix)

    def _ask(self, comparisons: Sequence[Comparison]) -> Verdict:
        n = len(comparisons)
        several = self.context.layout == "listwise" and self.strict
        orderings = orders(n, self.context.permutations if several else 1)
        dialogs = [d for ordering in orderings for d in self._dialogs([comparisons[i] for i in ordering])]
        answers = self.engine.answer_logits(dialogs, self.words)
        back = torch.tensor(orderings, device=answers.logp.device).argsort(1)
        logp = (
            self._tempered(answers.logp).view(len(orderings), n, 2).gather(1, back[..., None].expand(-1, -1, 2)).mean(0)
        )
        return Verdict(logp[:, 0], logp[:, 1], answers.mass.view(len(orderings), n).gather(1, back).mean(0))

    def _ask_after_reasons(self, comparisons: Sequence[Comparison]) -> Verdict:
        k = self.context.samples if self.strict else 1
        dialogs = [d for d in self._dialogs(comparisons) for _ in range(k)]
        reasons = self._write(dialogs, temperature=1.0 if k > 1 else 0.0)
        tails = [self.engine.tokens(f"{r.split(VERDICT.strip())[0].strip()}{VERDICT}") for r in reasons]
        answers = self.engine.answer_logits(dialogs, self.words, tails)
        logp = self._tempered(answers.logp).view(-1, k, 2).logsumexp(1) - math.log(k)
        return Verdict(logp[:, 0], logp[:, 1], answers.mass.view(-1, k).mean(1))

    def _write(self, dialogs: Sequence[Dialog], temperature: float, chunk: int = 64) -> list[str]:
        """The model's texts after each dialog. One call takes at most `chunk` dialogs, and no more than fit into the
        engine's token budget."""
        max_new_tokens = self.context.max_reason_tokens
        longest = max_new_tokens + max(self.engine.num_tokens(d) for d in dialogs)
        chunk = max(1, min(chunk, self.engine.budget // longest))
        starts = range(0, len(dialogs), chunk)
        # Processes that share sharded weights must make the same number of calls; surplus calls write chunk 0 again.
        calls = all_reduce_max(len(starts)) if self.engine.lockstep else len(starts)
        texts: list[str] = []
        for i in [*starts, *[0] * (calls - len(starts))]:
            written = self.engine.backbone.generate(dialogs[i : i + chunk], max_new_tokens, temperature)
            texts += written if len(texts) < len(dialogs) else []
        return texts

    def explain(self, comparisons: Sequence[Comparison]) -> list[str]:
        """The judge's free answers, greedily decoded: a verdict, and reasons if it was trained to give them."""
        return self._write(self._dialogs(comparisons), temperature=0.0)

    def learn(self, comparisons: Sequence[Comparison]) -> tuple[Verdict, Tensor]:
        """For training: verdicts, and the mean log-probability of each rationale's tokens, (N,), NaN without one.

        With chain of thought the verdict stands after (`reason_first`) or before (`answer_first`) the given rationale.
        If none is given, an empty rationale takes its place, so that the verdict is always read where inference reads
        it.
        """
        nothing = torch.full((len(comparisons),), torch.nan)
        has_reasons = self.context.cot == "reason_first" or any(c.rationale for c in comparisons)
        if self.context.cot == "none" or not has_reasons:
            verdict = self._ask(comparisons)
            return verdict, nothing.to(verdict.margin.device)
        tails, verdict_at = [], []
        for c in comparisons:
            before, word, after = self.context.answer((c.label or 0.0) >= 0.5, c.rationale or "", c.candidate)
            start = self.engine.tokens(before)
            rest = [*self.engine.tokens(after), *self.engine.end_of_turn] if c.rationale else []
            tails.append([*start, self.engine.word_ids((word,))[0], *rest])
            verdict_at.append(len(start))
        answers, reasons = self.engine.answer_and_reasons(self._dialogs(comparisons), tails, verdict_at, self.words)
        means = [
            r.mean() if c.rationale else r.new_tensor(torch.nan) for r, c in zip(reasons, comparisons, strict=True)
        ]
        logp = self._tempered(answers.logp)
        return Verdict(logp[:, 0], logp[:, 1], answers.mass), torch.stack(means)

    def _tempered(self, logp: Tensor) -> Tensor:
        """(N, 2): the same probability of both words together, their log-odds divided by the temperature."""
        if self.temperature == 1:
            return logp
        return (logp / self.temperature).log_softmax(-1) + logp.logsumexp(-1, keepdim=True)

    def trainable(self) -> dict[str, nn.Module]:
        return {"vlm": self.engine.backbone.module}


def _unclear(verdict: Verdict) -> dict[int, str]:
    """Reasons for the items whose answer mass is too small or NaN."""
    mass = verdict.answer_mass.detach()
    rows = (~(mass >= MIN_ANSWER_MASS)).nonzero().flatten().tolist()
    why = "the VLM did not answer yes or no (probability {:.2f} on both); train the judge, or check its answer words"
    return {i: why.format(float(mass[i])) for i in rows}
