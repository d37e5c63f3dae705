"""What a VLM's answers are divided by before it learns to judge.

A VLM that was never asked for taste answers too surely: many logits apart, and as often wrong as noisy labels make
anybody. The first steps would then do little else than take its answers back, and with them what they were right
about. Divided by a temperature (Guo et al., arXiv 1706.04599), the same order of answers begins as likely as it can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

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


def fitting_records(records: Sequence[PreferenceRecord], seed: int) -> dict[int, PreferenceRecord]:
    """This process's share of the records that a temperature is fitted on, by place; every process has as many."""
    order = stream(seed, "temperature").permutation(len(records))[:FIT_PROMPTS]
    places = [i * world_size() + rank() for i in range(max(1, len(order) // world_size()))]
    return {p: records[int(order[p % len(order)])] for p in places}


@torch.no_grad()
def starting_temperature(
    judge: RewardModel,
    records: dict[int, PreferenceRecord],
    paradigm: Paradigm,
    reference: Reference = "random",
    inside: Inside = plainly,
) -> float:
    """The likeliest temperature of the answers to the questions of training, a leaning to "yes" or "no" taken away.

    Args:
        judge: with a temperature of 1; records: `fitting_records`, one in a pass.
        inside: how passes are called; weights that are sharded want them through their root.

    Returns:
        T between 0.05 and 20, the same in every process; 1 where there is an answer that is not a number (the first
        step will say whose).
    """
    found: dict[int, tuple[list[float], list[float]]] = {}
    for place, record in records.items():
        asked = questions(record, paradigm, reference)
        verdict, _ = inside(verdicts, judge, [q.comparison for q in asked])
        found[place] = (verdict.margin.tolist(), targets_of(asked)[0].tolist())
    everything = [pair for _, pair in sorted(everyones(found).items())]
    margins, targets = (np.array([x for pair in everything for x in pair[i]]) for i in (0, 1))
    if not np.isfinite(margins).all():
        return 1.0
    return fit_temperature(margins - margins.mean(), targets)
