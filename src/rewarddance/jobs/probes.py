"""Looks at fixed prompts and noises while a generator is being aligned, and the gold standards beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rewarddance.core.loop import Metrics
from rewarddance.core.media import Media
from rewarddance.core.monitors import HackingMonitor
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.generator.rollout import sample
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.world.oracle import fidelity

Gold = Callable[[Sequence[str], Sequence[Media], Sequence[Media]], list[float]]
"""A measure of pictures that the training does not see: of prompts, pictures, and the start's pictures for the same."""


def oracle_gold(prompts: Sequence[str], media: Sequence[Media], start: Sequence[Media]) -> list[float]:
    """Oracle fidelity of pictures of the embedded world, [0, 1]."""
    return [fidelity(m.to_numpy(), p) for p, m in zip(prompts, media, strict=True)]


def judge_gold(judge: RewardModel, criterion: str) -> Gold:
    """A second judge's P(better than the start's picture): the gold standard where there is no exact measure.

    It should differ from the judge that trains (other data, another size or family): what fools one then need not
    fool the other (ensembles against over-optimisation: Coste et al., arXiv 2310.02743).
    """

    def found(prompts: Sequence[str], media: Sequence[Media], start: Sequence[Media]) -> list[float]:
        asked = [Comparison(p, x, s, criterion) for p, x, s in zip(prompts, media, start, strict=True)]
        return [float(v) for v in judge.judge(asked).reward.cpu()]

    return found


@dataclass
class Prober:
    """Looks at fixed prompts and noises: proxy reward against the references of the start, and the gold standard."""

    generator: Sd3Generator
    judge: RewardModel
    prompts: Sequence[str]
    num_noises: int
    num_steps: int
    criterion: str
    seed: int
    gold: Gold | None
    batch: int = 128

    def __post_init__(self) -> None:
        self.monitor = HackingMonitor()
        self.references: list[Media] | None = None

    @torch.no_grad()
    def look(self, step: int) -> Metrics:
        flat = [p for p in self.prompts for _ in range(self.num_noises)]
        noise = self.generator.noise(len(flat), torch.Generator().manual_seed(self.seed + 17))
        pictures: list[Media] = []
        for i in range(0, len(flat), self.batch):
            condition = self.generator.condition(flat[i : i + self.batch])
            z = sample(self.generator, condition, noise[i : i + self.batch], self.num_steps)
            pictures += self.generator.decode(z)
        if self.references is None:
            self.references = pictures
        # each sample meets the start's sample of the next noise, so that the start itself scores about one half
        shifted = [self.references[self._other(i)] for i in range(len(flat))]
        asked = [Comparison(p, x, r, self.criterion) for p, x, r in zip(flat, pictures, shifted, strict=True)]
        proxy = self.judge.judge(asked).reward.cpu().double().numpy().reshape(-1, self.num_noises)
        if self.gold is None:
            return {"probe/proxy": float(proxy.mean()), "probe/proxy_std": float(proxy.std())}
        gold = np.array(self.gold(flat, pictures, shifted)).reshape(-1, self.num_noises)
        return self.monitor.add(step, proxy, gold)

    def _other(self, i: int) -> int:
        row, column = divmod(i, self.num_noises)
        return row * self.num_noises + (column + 1) % self.num_noises
