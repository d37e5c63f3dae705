"""Looks at fixed prompts and noises while a generator is being aligned, and the gold standards beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rewarddance.core.errors import JudgementError
from rewarddance.core.loop import Metrics
from rewarddance.core.media import Media
from rewarddance.core.monitors import HackingMonitor
from rewarddance.core.parallel import add_up, everyones, rank, together, world_size
from rewarddance.core.progress import tracked
from rewarddance.core.protocols import Tunable
from rewarddance.core.streams import seed_of
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.generator.rollout import sample
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
    """Looks at fixed prompts and noises: proxy reward against the references of the start, and the gold standard.

    Data-parallel processes look at a share of the prompts each; all of them know what all saw.
    """

    generator: Tunable
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
        self.references: Tensor | None = None
        """Pictures of the first look, uint8 (prompts * noises, 3, H, W), those of one prompt together."""

    @torch.no_grad()
    def look(self, step: int) -> Metrics:
        """Draw, judge and measure; all processes call this together.

        Raises:
            JudgementError: in every process, where a judge does not answer in one.
        """
        mine = range(len(self.prompts))[rank() :: world_size()]
        rows = [i * self.num_noises + k for i in mine for k in range(self.num_noises)]
        prompts = [self.prompts[i] for i in mine for _ in range(self.num_noises)]
        pictures = self._draw(prompts, rows)
        if self.references is None:
            self.references = self._exchanged(pictures, rows)
        # each sample meets the start's sample of the next noise, so that the start itself scores about one half
        start = [Media.from_bytes(self.references[[self._other(i)]]) for i in rows]
        found = together(lambda: self._judged(prompts, pictures, start), JudgementError)
        told = everyones({row: [values[i] for values in found.values()] for i, row in enumerate(rows)})
        looked = np.array([told[row] for row in sorted(told)]).reshape(len(self.prompts), self.num_noises, len(found))
        if self.gold is None:
            return {"probe/proxy": float(looked[..., 0].mean()), "probe/proxy_std": float(looked[..., 0].std())}
        return self.monitor.add(step, looked[..., 0], looked[..., 1])

    def _judged(
        self, prompts: Sequence[str], pictures: Sequence[Media], start: Sequence[Media]
    ) -> dict[str, list[float]]:
        if not prompts:
            return {"proxy": [], "gold": []} if self.gold else {"proxy": []}
        asked = [Comparison(p, x, r, self.criterion) for p, x, r in zip(prompts, pictures, start, strict=True)]
        found = {"proxy": self.judge.judge(asked).reward.tolist()}
        return found | ({"gold": self.gold(prompts, pictures, start)} if self.gold else {})

    def _draw(self, prompts: Sequence[str], rows: Sequence[int]) -> list[Media]:
        rng = torch.Generator().manual_seed(seed_of(self.seed, "probes"))
        noise = self.generator.noise(len(self.prompts) * self.num_noises, rng)[list(rows)]
        pictures: list[Media] = []
        for i in tracked(range(0, len(rows), self.batch), "probes"):
            condition = self.generator.condition(prompts[i : i + self.batch])
            z = sample(self.generator, condition, noise[i : i + self.batch], self.num_steps)
            pictures += self.generator.decode(z)
        return pictures

    def _exchanged(self, pictures: Sequence[Media], rows: Sequence[int]) -> Tensor:
        side = self.generator.side
        everyone = torch.zeros(len(self.prompts) * self.num_noises, 3, side, side, dtype=torch.uint8)
        if pictures:  # with more processes than prompts some have none
            everyone[list(rows)] = torch.cat([m.to_bytes() for m in pictures])
        return add_up(everyone)

    def _other(self, i: int) -> int:
        row, column = divmod(i, self.num_noises)
        return row * self.num_noises + (column + 1) % self.num_noises
