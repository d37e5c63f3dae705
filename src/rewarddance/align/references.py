"""The reference bank: for every prompt the picture that candidates are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewarddance.align.config import ReferenceConfig
from rewarddance.core.media import Media
from rewarddance.core.parallel import all_reduce_sum, rank, world_size
from rewarddance.core.progress import tracked
from rewarddance.core.protocols import Generator
from rewarddance.core.streams import seed_of
from rewarddance.core.types import RewardModel
from rewarddance.search.best_of_n import draw_candidates, select


@dataclass
class ReferenceBank:
    """One reference a prompt, drawn from the current policy: the judge's best of N, or the first of them.

    Attributes:
        pictures: uint8 (P, 3, H, W) in main memory, in the order of the prompts; None before the first drawing.
        drawn_at: the step of the last drawing.
        win_rate: running mean of the rewards since then.
        num_unranked: prompts whose reference is the first candidate, because the judge refused all comparisons.
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
    num_unranked: int = 0

    def __post_init__(self) -> None:
        self._rows = {p: i for i, p in enumerate(self.prompts)}

    def draw(self, generator: Generator, judge: RewardModel, step: int) -> None:
        """Draw all references again with the generator as it is: a function of seed, step, weights and of how many
        processes share the prompts.

        A collective: each process draws a share of the prompts, and all processes get all pictures.
        """
        if self.config.kind == "none":
            self.drawn_at = step
            return
        rng = torch.Generator().manual_seed(seed_of(self.seed, "references", step, rank()))
        num = self.config.num_candidates if self.config.kind == "best_of_n" else 1
        winners, unranked = self._winners(generator, judge, self.prompts[rank() :: world_size()], num, rng)
        own = torch.cat(winners)
        self.pictures = own.new_zeros(len(self.prompts), *own.shape[1:])
        self.pictures[rank() :: world_size()] = own
        all_reduce_sum(self.pictures)
        self.num_unranked = int(all_reduce_sum(torch.tensor(unranked)))
        self.drawn_at, self.win_rate = step, 0.5

    def _winners(
        self, generator: Generator, judge: RewardModel, prompts: Sequence[str], num: int, rng: torch.Generator
    ) -> tuple[list[Tensor], int]:
        """The judge's best of `num` for every prompt, uint8 (1, 3, H, W) each, and how many prompts it refused."""
        winners: list[Tensor] = []
        unranked, at_once = 0, max(1, self.batch // num)
        for start in tracked(range(0, len(prompts), at_once), "references"):
            part = prompts[start : start + at_once]
            candidates = draw_candidates(generator, part, num, rng, self.num_steps, self.batch)
            best: list[int | None] = [0] * len(part)
            if num > 1:
                best = [s.best for s in select(judge, part, candidates, self.criterion)]
            unranked += best.count(None)
            winners += [c[b or 0].to_bytes() for c, b in zip(candidates, best, strict=True)]
        return winners, unranked

    @property
    def num_drawn(self) -> int:
        """Pictures of one drawing, over all prompts."""
        each = {"none": 0, "random": 1, "best_of_n": self.config.num_candidates}
        return len(self.prompts) * each[self.config.kind]

    def of(self, prompts: Sequence[str]) -> list[Media | None]:
        """References of a batch; None where the pointwise question is asked."""
        if self.pictures is None:
            return [None] * len(prompts)
        return [Media.from_bytes(self.pictures[self._rows[p]][None], origin="generator") for p in prompts]

    def note(self, reward: float) -> None:
        """Update the win rate with the mean reward of a step."""
        self.win_rate = 0.9 * self.win_rate + 0.1 * reward

    def is_due(self, step: int) -> bool:
        """Whether the references must be drawn again before this step."""
        if self.drawn_at < 0:
            return True
        if self.config.kind == "none" or self.config.refresh == "never" or step == self.drawn_at:
            return False
        if self.config.refresh == "steps":
            return step - self.drawn_at >= self.config.every
        return self.win_rate > self.config.above
