"""Generative judges: the reward is the probability that a VLM answers yes (RewardDance, arXiv 2509.08826)."""

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
"""At inference, an item is refused if yes and no together have less probability."""


@dataclass
class GenerativeJudge:
    """Asks a VLM. A comparison with a reference is a pairwise question, one without a reference is pointwise.

    Args:
        strict: True for inference: items whose answer mass is under `MIN_ANSWER_MASS` are refused. False for training,
            which logs the mass instead.
        temperature: divides the log-odds of the answers. The answer mass does not change.
        examples: labelled comparisons that come before every question.
    """

    engine: Engine
    context: Context
    strict: bool = True
    temperature: float = 1.0
    examples: Sequence[Comparison] = ()

    def __post_init__(self) -> None:
        self.prefix = example_turns(self.context, self.examples)
        self.words = [self.context.words.yes, self.context.words.no]
        if self.context.cot == "reason_first":  # a blank separates the verdict from the reasons before it
            self.words = [tuple(dict.fromkeys(f" {s.strip()}" for s in w)) for w in self.words]

    def problem(self, comparison: Comparison) -> str | None:
        """The reason why the judge cannot be asked about this comparison; None if it can."""
        return problem_of(comparison, self.context, self.engine, self.prefix)

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        """One verdict for each comparison. No comparison may have a `problem`.

        Reference and candidate are not exchanged. The `listwise` layout asks in several orders of the pictures and
        averages the log-probabilities. With `reason_first`, the VLM writes several reasons, and the probabilities after
        them are averaged. In training there is one order and one text of reasons.
        """
        ask = self._ask_after_reasons if self.context.cot == "reason_first" else self._ask
        verdict = ask(comparisons)
        return verdict.refuse(_unclear(verdict)) if self.strict else verdict

    def _dialogs(self, comparisons: Sequence[Comparison]) -> list[Dialog]:
        return dialogs_of(self.context, comparisons, self.prefix)

    def _ask(self, comparisons: Sequence[Comparison]) -> Verdict:
        num = len(comparisons)
        several_orders = self.context.layout == "listwise" and self.strict
        orderings = orders(num, self.context.permutations if several_orders else 1)
        dialogs = [d for ordering in orderings for d in self._dialogs([comparisons[i] for i in ordering])]
        answers = self.engine.answer_logits(dialogs, self.words)
        place = torch.tensor(orderings, device=answers.logp.device).argsort(1)  # of each comparison in each ordering
        logp = self._tempered(answers.logp).view(len(orderings), num, 2)
        logp = logp.gather(1, place[..., None].expand(-1, -1, 2)).mean(0)
        mass = answers.mass.view(len(orderings), num).gather(1, place).mean(0)
        return Verdict(logp[:, 0], logp[:, 1], mass)

    def _ask_after_reasons(self, comparisons: Sequence[Comparison]) -> Verdict:
        num_texts = self.context.samples if self.strict else 1
        dialogs = [d for d in self._dialogs(comparisons) for _ in range(num_texts)]
        reasons = self._write(dialogs, temperature=1.0 if num_texts > 1 else 0.0)
        tails = [self.engine.tokens(f"{r.split(VERDICT.strip())[0].strip()}{VERDICT}") for r in reasons]
        answers = self.engine.answer_logits(dialogs, self.words, tails)
        logp = self._tempered(answers.logp).view(-1, num_texts, 2).logsumexp(1) - math.log(num_texts)
        return Verdict(logp[:, 0], logp[:, 1], answers.mass.view(-1, num_texts).mean(1))

    def _write(self, dialogs: Sequence[Dialog], temperature: float, chunk: int = 64) -> list[str]:
        """The text that the VLM writes after each dialog.

        One call of the VLM takes at most `chunk` dialogs, and no more than the engine's token budget allows.
        """
        max_new_tokens = self.context.max_reason_tokens
        longest = max_new_tokens + max(self.engine.num_tokens(d) for d in dialogs)
        chunk = max(1, min(chunk, self.engine.budget // longest))
        starts = range(0, len(dialogs), chunk)
        # With sharded weights, all processes must make the same number of calls. Extra calls repeat the first chunk.
        num_calls = all_reduce_max(len(starts)) if self.engine.lockstep else len(starts)
        texts: list[str] = []
        for start in [*starts, *[0] * (num_calls - len(starts))]:
            written = self.engine.backbone.generate(dialogs[start : start + chunk], max_new_tokens, temperature)
            texts += written if len(texts) < len(dialogs) else []
        return texts

    def explain(self, comparisons: Sequence[Comparison]) -> list[str]:
        """The judge's answers as texts, by greedy decoding. They have reasons if the judge was trained to give them."""
        return self._write(self._dialogs(comparisons), temperature=0.0)

    def learn(self, comparisons: Sequence[Comparison]) -> tuple[Verdict, Tensor]:
        """For training: the verdicts, and the mean log-probability of the tokens of each given rationale, (N,).

        The mean is NaN for a comparison without a rationale. With chain of thought, the verdict comes after the
        rationale (`reason_first`) or before it (`answer_first`). If no rationale is given, an empty one takes its
        place. So training and inference read the verdict at the same place.
        """
        uses_reasons = self.context.cot == "reason_first" or any(c.rationale for c in comparisons)
        if self.context.cot == "none" or not uses_reasons:
            verdict = self._ask(comparisons)
            return verdict, torch.full((len(comparisons),), torch.nan, device=verdict.margin.device)
        tails, verdict_at = [], []
        for c in comparisons:
            before, word, after = self.context.answer((c.label or 0.0) >= 0.5, c.rationale or "", c.candidate)
            ids_before = self.engine.tokens(before)
            ids_after = [*self.engine.tokens(after), *self.engine.end_of_turn] if c.rationale else []
            tails.append([*ids_before, self.engine.word_ids((word,))[0], *ids_after])
            verdict_at.append(len(ids_before))
        answers, logps = self.engine.answer_and_reasons(self._dialogs(comparisons), tails, verdict_at, self.words)
        means = [p.mean() if c.rationale else p.new_tensor(torch.nan) for p, c in zip(logps, comparisons, strict=True)]
        logp = self._tempered(answers.logp)
        return Verdict(logp[:, 0], logp[:, 1], answers.mass), torch.stack(means)

    def _tempered(self, logp: Tensor) -> Tensor:
        """Log-probabilities (N, 2) with the log-odds divided by the temperature, and the same sum of probabilities."""
        if self.temperature == 1:
            return logp
        return (logp / self.temperature).log_softmax(-1) + logp.logsumexp(-1, keepdim=True)

    def trainable(self) -> dict[str, nn.Module]:
        return {"vlm": self.engine.backbone.module}


def _unclear(verdict: Verdict) -> dict[int, str]:
    """The reason for refusing each item whose answer mass is too small or NaN."""
    mass = verdict.answer_mass.detach()
    rows = (~(mass >= MIN_ANSWER_MASS)).nonzero().flatten().tolist()
    why = "the VLM did not answer yes or no (probability {:.2f} on both); train the judge, or check its answer words"
    return {i: why.format(float(mass[i])) for i in rows}
