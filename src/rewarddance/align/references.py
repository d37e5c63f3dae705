"""The reference bank: for every prompt the picture that candidates are compared with."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rewarddance.align.config import ReferenceConfig
from rewarddance.core.mapped import gather_media
from rewarddance.core.media import Media, StoredMedia
from rewarddance.core.parallel import all_reduce_sum, rank, world_size
from rewarddance.core.progress import tracked
from rewarddance.core.protocols import Tunable
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Request
from rewarddance.core.types import RewardModel
from rewarddance.search.best_of_n import draw_candidates, select


@dataclass
class ReferenceBank:
    """One reference a prompt, drawn from the current policy: the judge's best of N, or the first of them.

    Attributes:
        pictures: in the order of the prompts; None before the first drawing. Pictures are uint8 (P, 3, H, W) in main
            memory, clips are uint8 (P, F, 3, H, W) in a mapped file.
        folder: where files of clips lie; fps: frames per second of clips.
        drawn_at: the step of the last drawing.
        win_rate: running mean of P(better than the reference) since then.
        num_unranked: prompts whose reference is the first candidate, because the judge refused all comparisons.
    """

    config: ReferenceConfig
    prompts: tuple[Request, ...]
    num_steps: int
    criterion: str
    seed: int
    batch: int = 128
    pictures: Tensor | None = None
    drawn_at: int = -1
    win_rate: float = 0.5
    num_unranked: int = 0
    folder: Path = Path()
    fps: float | None = None

    def __post_init__(self) -> None:
        self._rows = {p: i for i, p in enumerate(self.prompts)}
        self._unranked = 0

    def draw(self, generator: Tunable, judge: RewardModel, step: int) -> None:
        """Draw all references again with the current weights. A collective.

        Each process draws a share of the prompts, and all processes get all pictures. The pictures depend on the seed,
        the step, the weights and the number of processes.
        """
        if self.config.kind == "none":
            self.drawn_at = step
            return
        rng = torch.Generator().manual_seed(seed_of(self.seed, "references", step, rank()))
        num = self.config.num_candidates if self.config.kind == "best_of_n" else 1
        rows, self._unranked, drawn = range(rank(), len(self.prompts), world_size()), 0, generator.drawn
        winners = self._winners(generator, judge, [self.prompts[i] for i in rows], num, rng)
        shape = (drawn.num_frames, 3, drawn.side, drawn.side)
        self.pictures = gather_media(winners, rows, len(self.prompts), shape, self.file(step))
        self.num_unranked = int(all_reduce_sum(torch.tensor(self._unranked)))
        self.fps, self.drawn_at, self.win_rate = drawn.fps, step, 0.5

    def file(self, step: int) -> Path:
        """The file of the clips that were drawn at a step."""
        return self.folder / f"references-{step:06d}.bytes"

    def forget_files(self, kept: Collection[int]) -> None:
        """Remove the files of all drawings but those of these steps."""
        names = {self.file(step).name for step in kept}
        for file in self.folder.glob("references-*.bytes"):
            if file.name not in names:
                file.unlink()

    def _winners(
        self, generator: Tunable, judge: RewardModel, prompts: Sequence[Request], num: int, rng: torch.Generator
    ) -> Iterator[Media]:
        """The judge's best of `num` for every prompt. `_unranked` counts the prompts that the judge refused."""
        at_once = max(1, self.batch // num)
        for start in tracked(range(0, len(prompts), at_once), "references"):
            part = prompts[start : start + at_once]
            candidates = draw_candidates(generator, part, num, rng, self.num_steps, self.batch)
            best: list[int | None] = [0] * len(part)
            if num > 1:
                best = [s.best for s in select(judge, part, candidates, self.criterion)]
            self._unranked += best.count(None)
            yield from (c[b or 0] for c, b in zip(candidates, best, strict=True))

    @property
    def num_drawn(self) -> int:
        """Pictures of one drawing, over all prompts."""
        num_of_kind = {"none": 0, "random": 1, "best_of_n": self.config.num_candidates}
        return len(self.prompts) * num_of_kind[self.config.kind]

    def of(self, prompts: Sequence[Request]) -> list[Media | None]:
        """References of a batch; None where the pointwise question is asked."""
        if self.pictures is None:
            return [None] * len(prompts)
        stored = StoredMedia(self.pictures, self.fps, origin="generator")
        return [stored[self._rows[p]] for p in prompts]

    def note(self, rate: float) -> None:
        """Update the running mean with the mean P(better than the reference) of a step."""
        self.win_rate = 0.9 * self.win_rate + 0.1 * rate

    def is_due(self, step: int) -> bool:
        """Whether the references must be drawn again before this step."""
        if self.drawn_at < 0:
            return True
        if self.config.kind == "none" or self.config.refresh == "never" or step == self.drawn_at:
            return False
        if self.config.refresh == "steps":
            return step - self.drawn_at >= self.config.every
        return self.win_rate > self.config.above
