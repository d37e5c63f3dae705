"""Best-of-N: draw N samples of every prompt and keep the one that a judge ranks first. NFE = N times the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewarddance.core.media import Media
from rewarddance.core.preferences import all_pairs
from rewarddance.core.protocols import Generator
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.generator.rollout import sample


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
    for start in range(0, len(flat), batch):
        part = flat[start : start + batch]
        z = sample(generator, generator.condition(part), generator.noise(len(part), rng), num_steps)
        out += generator.decode(z)
    return [out[i : i + num] for i in range(0, len(out), num)]


@torch.no_grad()
def select(
    judge: RewardModel, prompts: Sequence[str], drawn: Sequence[Sequence[Media]], criterion: str
) -> list[Selection]:
    """The judge's winner of every prompt by round robin, all prompts in one call to the judge."""
    pairs = all_pairs(len(drawn[0])) if drawn else []
    asked = [Comparison(p, d[i], d[j], criterion) for p, d in zip(prompts, drawn, strict=True) for i, j in pairs]
    margins = judge.judge(asked).margin.float().cpu() if asked else torch.zeros(0)
    out = []
    for k, (prompt, candidates) in enumerate(zip(prompts, drawn, strict=True)):
        total = torch.zeros(len(candidates))
        for (i, j), m in zip(pairs, margins[k * len(pairs) : (k + 1) * len(pairs)], strict=True):
            total[i] += m
            total[j] -= m
        mean = total / max(1, len(candidates) - 1)
        out.append(Selection(prompt, tuple(candidates), int(mean.argmax()), mean))
    return out


def best_of_n(
    generator: Generator,
    judge: RewardModel,
    prompts: Sequence[str],
    num: int,
    rng: torch.Generator,
    num_steps: int = 10,
    criterion: str = "overall",
) -> list[Selection]:
    """Draw and select."""
    return select(judge, prompts, draw(generator, prompts, num, rng, num_steps), criterion)
