"""A training step in passes that fit the memory: gradients accumulate, and a pass that does not fit is halved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from rewarddance.core.errors import RunError
from rewarddance.core.memory import out_of_memory
from rewarddance.core.parallel import add_up, add_up_gradients, any_of, max_over_processes
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.sharding import Inside, plainly
from rewarddance.core.streams import stream
from rewarddance.core.tally import Tally
from rewarddance.core.types import RewardModel
from rewarddance.reward.config import Paradigm
from rewarddance.reward.context import Reference
from rewarddance.reward.objective import reward_step
from rewarddance.reward.paradigms import Question, questions

LOOK = "look at their pictures and labels"
FIGURES = ("loss", "accuracy", "answer_mass", "margin", "margin_std", "verdict_loss", "coin_loss", "reason_logp")
"""Of `reward_step`; the last is there where reasons are learnt."""


@dataclass
class Accumulator:
    """Gradients of one step over many records.

    Attributes:
        size: records in one pass; halved, once and for all, when a pass runs out of memory.
        say: told once, in words, when that happens.
        shuffle: put each record's questions in random order, for layouts in which the order decides places.
        inside: how passes are called; weights that are sharded want them through their root.
    """

    judge: RewardModel
    parameters: Sequence[nn.Parameter]
    paradigm: Paradigm
    smoothing: float
    size: int
    say: Callable[[str], None]
    shuffle: bool = False
    reason_weight: float = 0.0
    reference: Reference = "random"
    inside: Inside = plainly

    @property
    def _sharded(self) -> bool:
        return self.inside is not plainly

    def __call__(self, records: Sequence[PreferenceRecord], index: int = 0) -> dict[str, float]:
        """Add the gradient of the mean loss over all questions; figures of `reward_step`, averaged likewise.

        `index` is the step, on which the order of questions depends.

        Every data-parallel process gives records of its own; each ends with the gradient and the figures of all.

        Raises:
            RunError: one record alone does not fit, or the loss of some records is not finite (they are named).
        """
        asked = [self._ordered(questions(r, self.paradigm, self.reference), r.record_id, index) for r in records]
        total = int(add_up(torch.tensor(sum(map(len, asked)))))
        while True:
            try:
                tally = self._passes(records, asked, total)
                if not self._sharded:  # sharded gradients are summed as they are made
                    add_up_gradients(self.parameters)
                return {name: v for name, v in tally.means(FIGURES).items() if v is not None}
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if self._sharded:  # the other processes are in the middle of their pass
                    raise RunError(
                        f"out of memory with {self.size} records in a pass: {error}; set micro_batch lower"
                    ) from None
                for p in self.parameters:
                    p.grad = None
                if self.size == 1:
                    name = max(records, key=lambda r: len(r.media)).record_id
                    raise RunError(f"out of memory with a single record in a pass (largest: {name}): {error}") from None
                self.size = min(self.size, len(records)) // 2 or 1
                self.say(f"out of memory: going on with {self.size} records in a pass")

    def _ordered(self, asked: list[Question], record_id: str, index: int) -> list[Question]:
        if not self.shuffle:
            return asked
        return [asked[int(i)] for i in stream(index, "question-order", record_id).permutation(len(asked))]

    def _passes(self, records: Sequence[PreferenceRecord], asked: list[list[Question]], total: int) -> Tally:
        tally = Tally()
        starts = list(range(0, len(asked), self.size))
        if self._sharded and any_of(not any(asked)):
            raise RunError("a process has no comparison in this step; set prompts_per_step to the processes or more")
        idle = max_over_processes(len(starts)) - len(starts) if self._sharded else 0
        for i in [*starts, *[-1] * idle]:
            part = list(chain.from_iterable(asked[i : i + self.size] if i >= 0 else asked[:1]))
            found = self.inside(reward_step, self.judge, part, self.paradigm, self.smoothing, self.reason_weight)
            finite = bool(torch.isfinite(found["loss"]))
            if self._sharded and any_of(not finite):
                here = (
                    ", ".join(r.record_id for r in records[max(i, 0) :][: self.size])
                    if not finite
                    else "another process's"
                )
                raise RunError(f"the loss is not a number in a pass of these records: {here}; {LOOK}")
            if not finite:
                raise RunError(self._blame(records[i : i + self.size], asked[i : i + self.size]))
            share = len(part) / total if i >= 0 else 0.0
            (found["loss"] * share).backward()  # type: ignore[no-untyped-call]
            if i >= 0:
                figures = {k: float(v.detach()) for k, v in found.items()}
                decided, told = figures.pop("num_decided"), figures.pop("num_told")
                tally.add(figures, len(part), {"accuracy": decided, "reason_logp": told})
        return tally

    @torch.no_grad()
    def _blame(self, records: Sequence[PreferenceRecord], asked: list[list[Question]]) -> str:
        """Which records of a pass have no finite loss."""
        bad = [
            r.record_id
            for r, own in zip(records, asked, strict=True)
            if not torch.isfinite(reward_step(self.judge, own, self.paradigm, self.smoothing)["loss"])
        ]
        named = ", ".join(bad[:5]) or "none alone, only together"
        return f"the loss is not a number for {len(bad)} of {len(records)} records ({named}); {LOOK}"
