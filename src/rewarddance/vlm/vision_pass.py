"""From pictures to image tokens: each distinct picture once a call, in passes that fit, with a cache across calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewarddance.core.media import Dialog, Media
from rewarddance.core.memory import out_of_memory
from rewarddance.core.parallel import all_reduce_max
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.clip_forms import Frames
from rewarddance.vlm.encoding import ChatEncoder, Frame
from rewarddance.vlm.memory import MemoryBudget, TrialPass
from rewarddance.vlm.plan import shares

Name = tuple[tuple[str, ...], int]
"""Keys of the frames of an image, and its tokens. Equal names mean equal image tokens."""
TRIAL_PICTURES = 8
"""Pictures in the pass that memory is measured on."""


@dataclass(frozen=True)
class DistinctFrames:
    """Pictures and images of clips with different pixels, in order of appearance.

    Attributes:
        sizes: image tokens of each.
        index_of: number of every image that was shown, by (id of the media, frame indices).
    """

    frames: list[Frame]
    sizes: list[int]
    index_of: dict[tuple[int, Frames], int]


def name_of(frame: Frame, count: int) -> Name:
    """The name of an image of `count` tokens. A temporal patch that repeats one frame is named as the frame alone."""
    media, frames = frame
    keys = tuple(media.frame_key(i) for i in frames)
    return (keys if len(set(keys)) > 1 else keys[:1]), count


def distinct_frames(dialogs: Sequence[Dialog], encoder: ChatEncoder) -> DistinctFrames:
    """The images of several dialogs, equal pixels once: pictures, frames of clips, temporal patches of clips.

    They are told apart by a few of their pixels. All pixels are hashed only if those few are equal.
    """
    distinct = DistinctFrames([], [], {})
    alike: dict[tuple[Any, ...], list[int]] = {}
    for media in {id(p): p for d in dialogs for p in d if isinstance(p, Media)}.values():
        count = encoder.count(media)
        for frames in dict.fromkeys(encoder.images_of(media)):
            frame = (media, frames)
            sketches = dict.fromkeys(media.frame_sketch(i) for i in frames)
            others = alike.setdefault((*sketches, count), [])
            same = next((k for k in others if name_of(distinct.frames[k], count) == name_of(frame, count)), None)
            if same is None:
                others.append(same := len(distinct.frames))
                distinct.frames.append(frame)
                distinct.sizes.append(count)
            distinct.index_of[id(media), frames] = same
    return distinct


@dataclass
class VisionPass:
    """Runs a backbone's vision tower.

    Args:
        budget: largest number of pictures in one pass.
        cache: images (pictures, frames of clips, temporal patches) whose tokens are kept for later calls; the least
            recently used are dropped first. Not used while weights are trained.

    Attributes:
        num_encoded: pictures that went through the tower in this call.
        needed_later: names of images that a later table of this call shows again; empty if a gradient is wanted.
    """

    backbone: Backbone
    budget: int
    cache: int
    memory: MemoryBudget
    lockstep: bool
    num_encoded: int = 0
    needed_later: frozenset[Name] = frozenset()
    _cached: OrderedDict[Name, Tensor] = field(default_factory=OrderedDict, repr=False)
    _held: dict[Name, Tensor] = field(default_factory=dict, repr=False)

    def begin_call(self) -> None:
        """Start a new call, which may need several tables."""
        self.num_encoded, self.needed_later = 0, frozenset()
        self._held.clear()

    def table(self, distinct: DistinctFrames) -> Tensor | None:
        """All image tokens, one row each; None if there are no pictures.

        While no weight is trained, pictures that want no gradient are encoded without one, or taken from the cache.
        """
        if not distinct.frames:
            return None
        trained = any(p.requires_grad for p in self.backbone.module.parameters())
        if trained:
            self._cached.clear()
        if trained and torch.is_grad_enabled():
            return torch.cat(self._encode(distinct.frames, distinct.sizes))
        needs_gradient = [torch.is_grad_enabled() and media.frames.requires_grad for media, _ in distinct.frames]
        tokens_of: list[Tensor | None] = [None] * len(needs_gradient)
        recall = partial(self._recall, cache=0 if trained else self.cache)
        for rows, encode in (
            ([i for i, want in enumerate(needs_gradient) if not want], recall),
            ([i for i, want in enumerate(needs_gradient) if want], self._encode),
        ):
            tokens = encode([distinct.frames[i] for i in rows], [distinct.sizes[i] for i in rows])
            for i, t in zip(rows, tokens, strict=True):
                tokens_of[i] = t
        return torch.cat([t for t in tokens_of if t is not None])

    @torch.no_grad()
    def _recall(self, frames: list[Frame], sizes: list[int], cache: int) -> list[Tensor]:
        """Tokens of each picture: from this call's earlier tables or the cache if they are there, else encoded."""
        if not (cache or self._held or self.needed_later):
            return self._encode(frames, sizes)
        names = [name_of(frame, size) for frame, size in zip(frames, sizes, strict=True)]
        known = self._cached | self._held
        missing = [i for i, name in enumerate(names) if name not in known]
        new = self._encode([frames[i] for i in missing], [sizes[i] for i in missing])
        encoded = dict(zip((names[i] for i in missing), new, strict=True))
        tokens = [encoded[name] if name in encoded else known[name] for name in names]
        # clones, because the new tensors are views of one large tensor
        lasting = {n: t.clone() for n, t in encoded.items() if cache or n in self.needed_later}
        for name in names if cache else ():
            self._cached[name] = lasting[name] if name in lasting else known[name]
            self._cached.move_to_end(name)
        while len(self._cached) > cache:
            self._cached.popitem(last=False)
        self._held = {n: t for n, t in (known | lasting).items() if n in self.needed_later}
        return tokens

    def _encode(self, frames: list[Frame], sizes: list[int]) -> list[Tensor]:
        """Tokens of each picture, from the vision tower."""
        if not frames:
            return []
        self.num_encoded += len(frames)

        def trial() -> TrialPass | None:
            few = frames[:TRIAL_PICTURES]
            if len(frames) < 4 * TRIAL_PICTURES:
                return None
            return (lambda: self.backbone.image_tokens(few)), sum(sizes[:TRIAL_PICTURES])

        tokens = self.memory.units("vision", self.budget * max(sizes), trial, self.backbone.device)
        planned = shares(sizes, tokens, self.budget)
        # all_reduce before the first pass: afterwards the processes are in the middle of different passes
        passes = all_reduce_max(len(planned)) if self.lockstep else len(planned)
        parts = [self._pass_or_halves(frames[part.start : part.stop]) for part in planned]
        for _ in range(len(planned), passes):
            parts[0] = parts[0] + 0 * self.backbone.image_tokens(frames[:1]).sum()
        return list(torch.split(torch.cat(parts), sizes))

    def _pass_or_halves(self, frames: list[Frame]) -> Tensor:
        """One pass. If it does not fit in memory: passes of half the size, also in later calls."""
        try:
            return self.backbone.image_tokens(frames)
        except RuntimeError as error:
            if not out_of_memory(error) or self.lockstep or torch.is_grad_enabled() or len(frames) == 1:
                raise
        self.budget = half = len(frames) // 2
        return torch.cat([self._pass_or_halves(frames[i : i + half]) for i in range(0, len(frames), half)])
