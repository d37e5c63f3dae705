"""The reference bank: for every prompt the picture that candidates are compared with, and when it moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from rewarddance.align.config import ReferenceConfig
from rewarddance.core.media import Media
from rewarddance.core.parallel import add_up, rank, world_size
from rewarddance.core.protocols import Generator
from rewarddance.core.types import RewardModel
from rewarddance.search.best_of_n import draw, select


@dataclass
class ReferenceBank:
    """One reference a prompt, drawn from the current policy: the judge's best of N, or the first of them.

    Attributes:
        drawn_at: the step of the last drawing; win_rate: running mean reward against the bank since then.
    """

    config: ReferenceConfig
    prompts: tuple[str, ...]
    num_steps: int
    criterion: str
    seed: int
    batch: int = 128
    pictures: dict[str, Media] = field(default_factory=dict)
    drawn_at: int = -1
    win_rate: float = 0.5

    def draw(self, generator: Generator, judge: RewardModel, step: int) -> None:
        """Draw all references anew from the generator as it is; a function of seed, step and weights alone.

        Data-parallel processes draw a share each, with noise of their own, and exchange what they drew.
        """
        if self.config.kind == "none":
            self.drawn_at = step
            return
        rng = torch.Generator().manual_seed(self.seed * 7_919 + step + 104_729 * rank())
        num = self.config.num_candidates if self.config.kind == "best_of_n" else 1
        mine = self.prompts[rank() :: world_size()]
        own = torch.cat([m.frames for m in self._winners(generator, judge, mine, num, rng)])
        everyone = own.new_zeros(len(self.prompts), *own.shape[1:])
        everyone[rank() :: world_size()] = own
        add_up(everyone)
        self.pictures = {
            p: Media(x[None].clone(), origin="generator") for p, x in zip(self.prompts, everyone, strict=True)
        }
        self.drawn_at, self.win_rate = step, 0.5

    def _winners(
        self, generator: Generator, judge: RewardModel, prompts: Sequence[str], num: int, rng: torch.Generator
    ) -> list[Media]:
        """The judge's best of `num` for every prompt, in main memory; some prompts at a time."""
        found: list[Media] = []
        step = max(1, self.batch // num)
        for start in range(0, len(prompts), step):
            part = prompts[start : start + step]
            drawn = draw(generator, part, num, rng, self.num_steps, self.batch)
            best = [s.winner for s in select(judge, part, drawn, self.criterion)] if num > 1 else [d[0] for d in drawn]
            found += [replace(m, frames=m.frames.detach().cpu()) for m in best]
        return found

    def of(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> list[Media | None]:
        """References of a batch, on a device; None where the pointwise question is asked."""
        found = [self.pictures.get(p) for p in prompts]
        return [None if m is None else replace(m, frames=m.frames.to(device)) for m in found]

    def note(self, reward: float) -> None:
        """Tell the bank the mean reward of a step."""
        self.win_rate = 0.9 * self.win_rate + 0.1 * reward

    def is_due(self, step: int) -> bool:
        """Should the references be drawn anew before this step?"""
        if self.drawn_at < 0:
            return True
        if self.config.kind == "none" or self.config.refresh == "never" or step == self.drawn_at:
            return False
        if self.config.refresh == "steps":
            return step - self.drawn_at >= self.config.every
        return self.win_rate > self.config.above
