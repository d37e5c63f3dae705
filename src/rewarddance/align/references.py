"""The reference bank: for every prompt the picture that candidates are compared with, and when it moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewarddance.align.config import ReferenceConfig
from rewarddance.core.errors import JudgementError
from rewarddance.core.media import Media
from rewarddance.core.parallel import add_up, rank, together, world_size
from rewarddance.core.progress import tracked
from rewarddance.core.protocols import Generator
from rewarddance.core.streams import seed_of
from rewarddance.core.types import RewardModel
from rewarddance.search.best_of_n import draw, select


@dataclass
class ReferenceBank:
    """One reference a prompt, drawn from the current policy: the judge's best of N, or the first of them.

    Attributes:
        pictures: uint8 (P, 3, H, W) in main memory, in the order of the prompts; None before the first drawing.
        drawn_at: the step of the last drawing; win_rate: running mean reward against the bank since then.
    """

    config: ReferenceConfig
    prompts: tuple[str, ...]
    num_steps: int
    criterion: str
    seed: int
    batch: int = 128
    pictures: Tensor | None = None
    drawn_at: int = -1
    win_rate: float = 0.5

    def __post_init__(self) -> None:
        self._places = {p: i for i, p in enumerate(self.prompts)}

    def draw(self, generator: Generator, judge: RewardModel, step: int) -> None:
        """Draw all references anew from the generator as it is; a function of seed, step and weights alone.

        Data-parallel processes draw a share each, with noise of their own, and exchange what they drew.

        Raises:
            JudgementError: in every process, where the judge does not answer in one; the bank is as it was.
        """
        if self.config.kind == "none":
            self.drawn_at = step
            return
        rng = torch.Generator().manual_seed(seed_of(self.seed, "references", step, rank()))
        num = self.config.num_candidates if self.config.kind == "best_of_n" else 1
        mine = self.prompts[rank() :: world_size()]
        own = torch.cat(together(lambda: self._winners(generator, judge, mine, num, rng), JudgementError))
        self.pictures = own.new_zeros(len(self.prompts), *own.shape[1:])
        self.pictures[rank() :: world_size()] = own
        add_up(self.pictures)
        self.drawn_at, self.win_rate = step, 0.5

    def _winners(
        self, generator: Generator, judge: RewardModel, prompts: Sequence[str], num: int, rng: torch.Generator
    ) -> list[Tensor]:
        """The judge's best of `num` for every prompt, uint8 (1, 3, H, W) each; some prompts at a time."""
        found: list[Tensor] = []
        step = max(1, self.batch // num)
        for start in tracked(range(0, len(prompts), step), "references"):
            part = prompts[start : start + step]
            drawn = draw(generator, part, num, rng, self.num_steps, self.batch)
            best = [s.winner for s in select(judge, part, drawn, self.criterion)] if num > 1 else [d[0] for d in drawn]
            found += [m.to_bytes() for m in best]
        return found

    def of(self, prompts: Sequence[str]) -> list[Media | None]:
        """References of a batch; None where the pointwise question is asked."""
        if self.pictures is None:
            return [None] * len(prompts)
        return [Media.from_bytes(self.pictures[self._places[p]][None], origin="generator") for p in prompts]

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
