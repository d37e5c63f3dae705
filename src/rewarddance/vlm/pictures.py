"""Pictures to image tokens: each distinct one once a call, in passes that fit, with a bounded cache across calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewarddance.core.parallel import max_over_processes
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.encoding import Encoded, Frame
from rewarddance.vlm.memory import Room
from rewarddance.vlm.plan import shares

PROBE = 8
"""Pictures in the pass on which memory is measured."""


@dataclass(frozen=True)
class Shown:
    """Frames with different pixels, in order of appearance.

    Attributes:
        sizes: image tokens of each; first_row: where each one's tokens begin in the table of all.
    """

    frames: list[Frame]
    sizes: list[int]
    first_row: dict[tuple[str, int], int]


def distinct(encoded: Sequence[Encoded]) -> Shown:
    """The frames of several dialogs, equal pixels once."""
    found = Shown([], [], {})
    rows = 0
    for e in encoded:
        for (media, i), count in zip(e.images, e.counts, strict=True):
            if (media.key, i) not in found.first_row:
                found.first_row[media.key, i] = rows
                found.frames.append((media, i))
                found.sizes.append(count)
                rows += count
    return found


@dataclass
class Eyes:
    """A backbone's vision tower.

    Args:
        budget: pictures in one pass at most; cache: pictures whose tokens are kept for later calls, the least recently
            used go first, and only while no weight is trained.

    Attributes:
        looked: pictures that went through the tower in the last call.
    """

    backbone: Backbone
    budget: int
    cache: int
    room: Room
    lockstep: bool
    looked: int = 0
    _kept: OrderedDict[tuple[str, int], Tensor] = field(default_factory=OrderedDict, repr=False)

    def table(self, shown: Shown) -> Tensor | None:
        """All image tokens, one row each; None where there are no pictures.

        While no weight is trained, pictures that want no gradient are seen without, or taken from the cache.
        """
        self.looked = 0
        if not shown.frames:
            return None
        if any(p.requires_grad for p in self.backbone.module.parameters()):
            self._kept.clear()
            return torch.cat(self._look(shown.frames, shown.sizes))
        wanted = [torch.is_grad_enabled() and media.frames.requires_grad for media, _ in shown.frames]
        found: list[Tensor | None] = [None] * len(wanted)
        for rows, look in (
            ([i for i, want in enumerate(wanted) if not want], self._recall),
            ([i for i, want in enumerate(wanted) if want], self._look),
        ):
            tokens = look([shown.frames[i] for i in rows], [shown.sizes[i] for i in rows])
            for i, t in zip(rows, tokens, strict=True):
                found[i] = t
        return torch.cat([t for t in found if t is not None])

    @torch.no_grad()
    def _recall(self, frames: list[Frame], sizes: list[int]) -> list[Tensor]:
        """Tokens of each picture, from the cache where they are."""
        names = [(media.key, i) for media, i in frames]
        missing = [i for i, name in enumerate(names) if name not in self._kept]
        new = self._look([frames[i] for i in missing], [sizes[i] for i in missing])
        made = dict(zip((names[i] for i in missing), new, strict=True))
        found = [made[name] if name in made else self._kept[name] for name in names]
        for name in names if self.cache else ():
            if name in made:
                self._kept[name] = made[name].clone()
            self._kept.move_to_end(name)
        while len(self._kept) > self.cache:
            self._kept.popitem(last=False)
        return found

    def _look(self, frames: list[Frame], sizes: list[int]) -> list[Tensor]:
        """Tokens of each picture, from the vision tower."""
        if not frames:
            return []
        self.looked += len(frames)

        def probe() -> tuple[Callable[[], Any], int] | None:
            few = frames[:PROBE]
            return None if len(frames) < 4 * PROBE else (lambda: self.backbone.see(few), sum(sizes[:PROBE]))

        tokens = self.room.units("vision", self.budget * max(sizes), probe, self.backbone.device)
        planned = shares(sizes, tokens, self.budget)
        # everyone says how many passes it makes before the first of them
        passes = max_over_processes(len(planned)) if self.lockstep else len(planned)
        parts = [self.backbone.see([frames[i] for i in part]) for part in planned]
        for _ in range(len(planned), passes):
            parts[0] = parts[0] + 0 * self.backbone.see(frames[:1]).sum()
        return list(torch.split(torch.cat(parts), sizes))
