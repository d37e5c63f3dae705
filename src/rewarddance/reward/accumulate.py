"""A training step in passes that fit in memory: gradients accumulate, and a pass that does not fit is halved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from rewarddance.core.averages import WeightedMeans
from rewarddance.core.errors import RunError
from rewarddance.core.memory import out_of_memory
from rewarddance.core.parallel import (
    all_gather_dicts,
    all_reduce_gradients,
    all_reduce_max,
    all_reduce_sum,
    any_process,
    rank,
)
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.sharding import ForwardCall, direct_call
from rewarddance.core.streams import stream
from rewarddance.core.types import RewardModel
from rewarddance.reward.config import Paradigm
from rewarddance.reward.context import Reference
from rewarddance.reward.objective import askable, reward_step
from rewarddance.reward.paradigms import Question, questions

STEP_METRICS = ("loss", "accuracy", "answer_mass", "margin", "margin_std", "verdict_loss", "coin_loss", "reason_logp")
"""Metrics of `reward_step` that are logged; `reason_logp` only if reasons are learnt."""
_ADVICE = "look at their pictures and labels"


@dataclass
class Accumulator:
    """Gradients of one step over many records.

    Attributes:
        size: records in one pass; halved for all further steps when a pass runs out of memory.
        say: called with a message when that happens.
        shuffle: ask each record's questions in random order, for layouts in which the order decides positions.
        forward: how passes are called; sharded weights need their FSDP root.
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
    pointwise_weight: float = 0.0
    forward: ForwardCall = direct_call

    @property
    def _sharded(self) -> bool:
        return self.forward is not direct_call

    def __call__(self, records: Sequence[PreferenceRecord], index: int = 0) -> dict[str, float]:
        """Add the gradient of the mean loss over all questions. A collective: each process gives its own records.

        Questions that the judge cannot be asked are left out.

        Args:
            index: the step; the random order of questions depends on it.

        Returns:
            Means of `reward_step`'s metrics over all processes, and `num_left_out` if questions were left out. If no
            process had a question, there are no other metrics.

        Raises:
            RunError: one record alone does not fit, or the loss of some records is not finite (they are named).
        """
        all_questions = [questions(r, self.paradigm, self.reference, self.pointwise_weight) for r in records]
        batches = [
            self._ordered(askable(self.judge, q), r.record_id, index)
            for q, r in zip(all_questions, records, strict=True)
        ]
        counts = torch.tensor([sum(map(len, batches)), sum(map(len, all_questions))])
        total, before = all_reduce_sum(counts).tolist()
        left_out = {"num_left_out": before - total} if before > total else {}
        while True:
            try:
                means = self._passes(records, batches, total)
                if not self._sharded:  # FSDP sums sharded gradients in the backward pass
                    all_reduce_gradients(self.parameters)
                return {k: v for k, v in means.all_reduce(STEP_METRICS).items() if v is not None} | left_out
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._halve(records, error)

    def _halve(self, records: Sequence[PreferenceRecord], error: RuntimeError) -> None:
        if self._sharded:  # the other processes are in the middle of their pass and cannot start again
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

    def _ordered(self, batch: list[Question], record_id: str, index: int) -> list[Question]:
        if not self.shuffle:
            return batch
        return [batch[int(i)] for i in stream(index, "question-order", record_id).permutation(len(batch))]

    def _passes(self, records: Sequence[PreferenceRecord], batches: list[list[Question]], total: int) -> WeightedMeans:
        means = WeightedMeans()
        starts = [i for i in range(0, len(batches), self.size) if any(batches[i : i + self.size])]
        passes, borrowed = len(starts), list[Question]()
        if self._sharded:
            passes, borrowed = self._in_lockstep(starts, batches)
        surplus = (starts or [0])[:1] * (passes - len(starts))
        for number, i in enumerate([*starts, *surplus]):
            part = list(chain.from_iterable(batches[i : i + self.size])) or borrowed
            out = self.forward(reward_step, self.judge, part, self.paradigm, self.smoothing, self.reason_weight)
            self._check_finite(
                bool(torch.isfinite(out["loss"])), records[i : i + self.size], batches[i : i + self.size]
            )
            counts = number < len(starts)
            (out["loss"] * (len(part) / total if counts else 0.0)).backward()  # type: ignore[no-untyped-call]
            if counts:
                metrics = {k: float(v.detach()) for k, v in out.items()}
                decided, with_reason = metrics.pop("num_decided"), metrics.pop("num_reasons")
                means.add(metrics, len(part), {"accuracy": decided, "reason_logp": with_reason})
        return means

    def _in_lockstep(self, starts: Sequence[int], batches: Sequence[list[Question]]) -> tuple[int, list[Question]]:
        """Number of passes of every process, which sharded weights need to be equal, and a question to repeat.

        Surplus passes have weight 0 and repeat the first pass of the process. A process whose questions the judge all
        refuses asks the question of another process. Without any question there is no pass.
        """
        passes, borrowed = all_reduce_max(len(starts)), list[Question]()
        if passes and any_process(not starts):
            first = next((q for batch in batches for q in batch), None)
            given = all_gather_dicts({rank(): first})
            borrowed = [next(given[r] for r in sorted(given) if given[r] is not None)]  # type: ignore[list-item]
        return passes, borrowed

    def _check_finite(self, finite: bool, records: Sequence[PreferenceRecord], batches: list[list[Question]]) -> None:
        if self._sharded and any_process(not finite):
            names = "another process's" if finite else ", ".join(r.record_id for r in records)
            raise RunError(f"the loss is not a number in a pass of these records: {names}; {_ADVICE}")
        if not finite:
            raise RunError(self._blame(records, batches))

    @torch.no_grad()
    def _blame(self, records: Sequence[PreferenceRecord], batches: list[list[Question]]) -> str:
        """Which records of a pass have no finite loss."""
        bad = [
            r.record_id
            for r, batch in zip(records, batches, strict=True)
            if batch and not torch.isfinite(reward_step(self.judge, batch, self.paradigm, self.smoothing)["loss"])
        ]
        names = ", ".join(bad[:5]) or "none alone, only together"
        return f"the loss is not a number for {len(bad)} of {len(records)} records ({names}); {_ADVICE}"
