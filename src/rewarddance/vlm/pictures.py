"""Pictures to image tokens: each distinct one once a call, in passes that fit, with a bounded cache across calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewarddance.core.memory import out_of_memory
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
        looked: pictures that went through the tower in this call.
        later: keys of pictures that a later table of this call shows again, where no gradient is wanted.
    """

    backbone: Backbone
    budget: int
    cache: int
    room: Room
    lockstep: bool
    looked: int = 0
    later: frozenset[str] = frozenset()
    _kept: OrderedDict[tuple[str, int], Tensor] = field(default_factory=OrderedDict, repr=False)
    _held: dict[tuple[str, int], Tensor] = field(default_factory=dict, repr=False)

    def begin(self) -> None:
        """A new call, which may come in several tables."""
        self.looked, self.later = 0, frozenset()
        self._held.clear()

    def table(self, shown: Shown) -> Tensor | None:
        """All image tokens, one row each; None where there are no pictures.

        While no weight is trained, pictures that want no gradient are seen without, or taken from the cache.
        """
        if not shown.frames:
            return None
        trained = any(p.requires_grad for p in self.backbone.module.parameters())
        if trained:
            self._kept.clear()
        if trained and torch.is_grad_enabled():
            return torch.cat(self._look(shown.frames, shown.sizes))
        wanted = [torch.is_grad_enabled() and media.frames.requires_grad for media, _ in shown.frames]
        found: list[Tensor | None] = [None] * len(wanted)
        recall = partial(self._recall, cache=0 if trained else self.cache)
        for rows, look in (
            ([i for i, want in enumerate(wanted) if not want], recall),
            ([i for i, want in enumerate(wanted) if want], self._look),
        ):
            tokens = look([shown.frames[i] for i in rows], [shown.sizes[i] for i in rows])
            for i, t in zip(rows, tokens, strict=True):
                found[i] = t
        return torch.cat([t for t in found if t is not None])

    @torch.no_grad()
    def _recall(self, frames: list[Frame], sizes: list[int], cache: int) -> list[Tensor]:
        """Tokens of each picture, from this call's earlier tables or the cache where they are."""
        names = [(media.key, i) for media, i in frames]
        known = self._kept | self._held
        missing = [i for i, name in enumerate(names) if name not in known]
        new = self._look([frames[i] for i in missing], [sizes[i] for i in missing])
        made = dict(zip((names[i] for i in missing), new, strict=True))
        found = [made[name] if name in made else known[name] for name in names]
        lasting = {n: t.clone() for n, t in made.items() if cache or n[0] in self.later}
        for name in names if cache else ():
            self._kept[name] = lasting[name] if name in lasting else known[name]
            self._kept.move_to_end(name)
        while len(self._kept) > cache:
            self._kept.popitem(last=False)
        self._held = {n: t for n, t in (known | lasting).items() if n[0] in self.later}
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
        parts = [self._pass(frames[part.start : part.stop]) for part in planned]
        for _ in range(len(planned), passes):
            parts[0] = parts[0] + 0 * self.backbone.see(frames[:1]).sum()
        return list(torch.split(torch.cat(parts), sizes))

    def _pass(self, frames: list[Frame]) -> Tensor:
        """One pass, or passes of half the size where it does not fit in memory, from then on."""
        try:
            return self.backbone.see(frames)
        except RuntimeError as error:
            if not out_of_memory(error) or self.lockstep or torch.is_grad_enabled() or len(frames) == 1:
                raise
        self.budget = half = len(frames) // 2
        return torch.cat([self._pass(frames[i : i + half]) for i in range(0, len(frames), half)])
