"""What a VLM's answers are divided by before it learns to judge.

A VLM that was never asked for taste answers too surely: many logits apart, and as often wrong as noisy labels make
anybody. The first steps would then do little else than take its answers back, and with them what they were right
about. Divided by a temperature (Guo et al., arXiv 1706.04599), the same order of answers begins as likely as it can be.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from rewarddance.core.errors import RunError
from rewarddance.core.parallel import everyones, rank, world_size
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.sharding import Inside, plainly
from rewarddance.core.streams import stream
from rewarddance.core.types import RewardModel
from rewarddance.reward.calibration import fit_temperature
from rewarddance.reward.config import Paradigm
from rewarddance.reward.context import Reference
from rewarddance.reward.objective import verdicts
from rewarddance.reward.paradigms import questions, targets_of

FIT_PROMPTS = 96


def fitting_rows(num: int, seed: int) -> dict[int, int]:
    """Which of `num` records a temperature is fitted on: this process's share, by place; every process has as many."""
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
    inside: Inside = plainly,
) -> float:
    """The likeliest temperature of the answers to the questions of training, a leaning to "yes" or "no" taken away.

    Args:
        judge: with a temperature of 1.
        records: with their places (`fitting_rows`); one is held and asked about at a time.
        shuffle: ask about each record in random order, as training does in layouts where the order decides places.
        inside: how passes are called; weights that are sharded want them through their root.

    Returns:
        T between 1 and 20, the same in every process. Never under 1: nothing is to be made surer than it is.

    Raises:
        RunError: an answer is not a number; says to which record.
    """
    found: dict[int, tuple[list[float], list[float]]] = {}
    broken: dict[int, str] = {}
    for place, record in records:
        asked = questions(record, paradigm, reference)
        if shuffle:
            asked = [asked[int(i)] for i in stream(0, "question-order", record.record_id).permutation(len(asked))]
        if asked:
            verdict, _ = inside(verdicts, judge, [q.comparison for q in asked])
            found[place] = (verdict.margin.tolist(), targets_of(asked)[0].tolist())
            if not np.isfinite(found[place]).all():
                broken[place] = record.record_id
    if named := everyones(broken):
        raise RunError(
            f"no number for an answer about these records: {', '.join(named.values())}; look at their pictures"
        )
    everything = [pair for _, pair in sorted(everyones(found).items())]
    margins, targets = (np.array([x for pair in everything for x in pair[i]]) for i in (0, 1))
    return max(1.0, fit_temperature(margins - margins.mean(), targets))
