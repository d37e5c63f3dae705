"""The temperature that a VLM's answers are divided by before it learns to judge.

A VLM that was not trained to judge is too sure: its log-odds are large and often wrong. Without a temperature, the
first steps of training mostly push all margins to 0, so what the VLM knew is lost. The likeliest temperature (Guo et
al., arXiv 1706.04599) keeps the order of the answers and makes them as likely as they can be (ADR 5).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from rewarddance.core.errors import RunError
from rewarddance.core.parallel import all_gather_dicts, rank, world_size
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.sharding import ForwardCall, direct_call
from rewarddance.core.statistics import fit_temperature
from rewarddance.core.streams import stream
from rewarddance.core.types import RewardModel
from rewarddance.reward.config import Paradigm
from rewarddance.reward.context import Reference
from rewarddance.reward.objective import askable, verdicts
from rewarddance.reward.paradigms import questions, targets_of

FIT_PROMPTS = 96


def fitting_rows(num: int, seed: int) -> dict[int, int]:
    """Which of `num` records the temperature is fitted on: this process's share, {place in the list: row}.

    Every process has the same number of records.
    """
    order = stream(seed, "temperature").permutation(num)[:FIT_PROMPTS]
    places = [i * world_size() + rank() for i in range(max(1, len(order) // world_size()))]
    return {p: int(order[p % len(order)]) for p in places}


@torch.no_grad()
def starting_temperature(
    judge: RewardModel,
    records: Iterable[tuple[int, PreferenceRecord]],
    paradigm: Paradigm,
    reference: Reference = "random",
    *,
    shuffle: bool = False,
    forward: ForwardCall = direct_call,
) -> float:
    """The likeliest temperature of the answers to training's questions, after their mean margin is subtracted.

    A collective.

    Args:
        judge: with a temperature of 1.
        records: with their places (`fitting_rows`); one record is held and asked about at a time.
        shuffle: ask each record's questions in random order, as training does in layouts where the order matters.
        forward: how passes are called; sharded weights need their FSDP root.

    Returns:
        T between 1 and 20, the same in every process. Never below 1: no answer becomes surer than it is.

    Raises:
        RunError: an answer is not a number; names the record.
    """
    answers: dict[int, tuple[list[float], list[float]]] = {}
    broken: dict[int, str] = {}
    for place, record in records:
        batch = askable(judge, questions(record, paradigm, reference))
        if shuffle:
            batch = [batch[int(i)] for i in stream(0, "question-order", record.record_id).permutation(len(batch))]
        if batch:
            verdict, _ = forward(verdicts, judge, [q.comparison for q in batch])
            answers[place] = (verdict.margin.tolist(), targets_of(batch)[0].tolist())
            if not np.isfinite(answers[place]).all():
                broken[place] = record.record_id
    if named := all_gather_dicts(broken):
        raise RunError(f"an answer about these records is not a number: {', '.join(named.values())}; look at them")
    pairs = [pair for _, pair in sorted(all_gather_dicts(answers).items())]
    margins, targets = (np.array([x for pair in pairs for x in pair[i]]) for i in (0, 1))
    return max(1.0, fit_temperature(margins - margins.mean(), targets)) if margins.size else 1.0
