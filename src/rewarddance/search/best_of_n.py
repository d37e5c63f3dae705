"""Best-of-N: draw N samples of every prompt and keep the one that a judge ranks first. NFE = N times the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewarddance.core.media import Media
from rewarddance.core.progress import tracked
from rewarddance.core.protocols import Generator
from rewarddance.core.types import RewardModel
from rewarddance.generator.rollout import sample
from rewarddance.reward.rank import rank_all


@dataclass(frozen=True)
class Selection:
    """What best-of-N found for one prompt.

    Attributes:
        candidates: the N samples; best: index of the winner; margin: (N,) mean log-odds against the others.
    """

    prompt: str
    candidates: tuple[Media, ...]
    best: int
    margin: Tensor

    @property
    def winner(self) -> Media:
        return self.candidates[self.best]


@torch.no_grad()
def draw(
    generator: Generator, prompts: Sequence[str], num: int, rng: torch.Generator, num_steps: int, batch: int = 128
) -> list[list[Media]]:
    """`num` samples of every prompt, in order, `batch` pictures at a time; the noise depends on `rng` alone."""
    out: list[Media] = []
    flat = [p for p in prompts for _ in range(num)]
    for start in tracked(range(0, len(flat), batch), "samples"):
        part = flat[start : start + batch]
        z = sample(generator, generator.condition(part), generator.noise(len(part), rng), num_steps)
        out += generator.decode(z)
    return [out[i : i + num] for i in range(0, len(out), num)]


def select(
    judge: RewardModel, prompts: Sequence[str], drawn: Sequence[Sequence[Media]], criterion: str | None = None
) -> list[Selection]:
    """The judge's winner of every prompt by round robin, all prompts in one call to the judge."""
    found = rank_all(judge, prompts, drawn, criterion)
    return [Selection(p, tuple(d), r.order[0], r.margin) for p, d, r in zip(prompts, drawn, found, strict=True)]


def best_of_n(
    generator: Generator,
    judge: RewardModel,
    prompts: Sequence[str],
    num: int,
    rng: torch.Generator,
    num_steps: int = 10,
    criterion: str | None = None,
) -> list[Selection]:
    """Draw and select."""
    return select(judge, prompts, draw(generator, prompts, num, rng, num_steps), criterion)
