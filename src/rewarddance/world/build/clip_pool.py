"""Batches of training clips: some are new in every step, the others come from a pool on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewarddance.core.prefetch import Feed, num_workers
from rewarddance.core.streams import stream
from rewarddance.world.build.video_config import ClipStreamConfig
from rewarddance.world.motion.batches import clip_batch, prompt_ids


class FreshClips(NamedTuple):
    """New clips as they travel between processes: NumPy arrays pass through a pipe and need no shared memory.

    Attributes:
        clips: uint8 (R, F, H, W, 3).
        ids: token ids of their prompts, (R, PROMPT_TOKENS).
    """

    clips: NDArray[np.uint8]
    ids: NDArray[np.int64]


def fresh_clips(seed: int, name: str, size: int, index: int) -> FreshClips:
    """The clips `index * size` to `(index + 1) * size - 1` of a stream."""
    prompts, clips = clip_batch(seed, name, index, size)
    return FreshClips(clips, prompt_ids(prompts))


def signed(clips: Tensor) -> Tensor:
    """uint8 clips (B, F, H, W, 3) as pixels in [-1, 1], (B, 3, F, H, W)."""
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


Encode = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""From uint8 clips (R, F, H, W, 3) and token ids (R, T), both on the device, to the rows that the pool keeps."""


class ClipPool:
    """The newest clips of a stream. Resuming at a step makes the same pool again.

    Args:
        first: the first step that a batch is asked for.
        stop: the step after the last one.
        encode: turns new clips into the rows that the pool keeps.

    Attributes:
        waited: seconds that the last batch waited for new clips.
    """

    def __init__(
        self, config: ClipStreamConfig, name: str, first: int, stop: int, device: torch.device, encode: Encode
    ) -> None:
        self.config, self.name, self.device, self.encode = config, name, device, encode
        self.next = max(0, first - config.num_slots + 1)
        make = partial(fresh_clips, config.seed, name, config.fresh)
        self.feed = Feed(make, stop, num_workers(config.workers, device))
        self.kept: dict[str, Tensor] = {}
        self.waited = 0.0

    def batch(self, step: int, size: int | None = None, names: Sequence[str] = ()) -> dict[str, Tensor]:
        """The rows of a step's batch, (size, ...) each; `batch_size` by default. Steps are asked for in order.

        Args:
            names: the values of a row to return; all by default.
        """
        before = self.feed.waited
        while self.next <= step:
            self._keep(self.feed(self.next))
        self.waited = self.feed.waited - before
        rows = torch.from_numpy(self._rows(step, size or self.config.batch_size)).to(self.device)
        return {name: self.kept[name][rows] for name in names or self.kept}

    def _keep(self, fresh: FreshClips) -> None:
        clips, ids = (torch.from_numpy(x).to(self.device) for x in fresh)
        begin = self.next % self.config.num_slots * self.config.fresh
        for name, values in self.encode(clips, ids).items():
            if name not in self.kept:
                shape = (self.config.num_slots * self.config.fresh, *values.shape[1:])
                self.kept[name] = torch.empty(shape, dtype=values.dtype, device=self.device)
            self.kept[name][begin : begin + self.config.fresh] = values
        self.next += 1

    def _rows(self, step: int, size: int) -> NDArray[np.int64]:
        """`size` rows of the pool: the step's own clips, and others that are drawn with replacement."""
        fresh, slots = self.config.fresh, self.config.num_slots
        oldest = max(0, step + 1 - slots) * fresh
        newest = np.arange(step * fresh, (step + 1) * fresh)
        rng = stream(self.config.seed, f"{self.name}-draw", step)
        others = rng.integers(oldest, (step + 1) * fresh, size=size - fresh)
        return np.concatenate([newest, others]) % (slots * fresh)
