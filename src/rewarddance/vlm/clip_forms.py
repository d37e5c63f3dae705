"""How each family of VLMs is shown a clip: the text, the number of frames in one image, and where the times are given.

A clip's images are tuples of frame indices: one frame each for InternVL, a temporal patch of two for Qwen-VL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rewarddance.core.clip_frames import SampledFrames

Frames = tuple[int, ...]
"""Indices of the frames of one image of a clip."""


class ClipForm(Protocol):
    """What the encoder needs to know to write a clip."""

    @property
    def temporal(self) -> int:
        """Frames of one image."""
        ...

    @property
    def context(self) -> str | None:
        """The context token of clips; None if it is that of pictures."""
        ...

    def text(self, sampled: SampledFrames, start: str, context: str, end: str) -> str:
        """The clip with one context token for each image."""
        ...

    def shifts(self, sampled: SampledFrames) -> Sequence[int]:
        """Rotary positions in time of each image, counted from the clip's first one."""
        ...


def images_of(sampled: SampledFrames, temporal: int) -> list[Frames]:
    """The images of a clip. If the last patch is not full, the last frame is repeated."""
    last = sampled.indices[-1]
    padded = (*sampled.indices, *[last] * (-len(sampled.indices) % temporal))
    return [padded[i : i + temporal] for i in range(0, len(padded), temporal)]


def numbered_lines(picture: str, times: Sequence[str]) -> str:
    """One line for each frame: its number, its time (may be empty) and the text of its picture."""
    return "".join(f"Frame{i}{time}: {picture}\n" for i, time in enumerate(times, 1))


@dataclass(frozen=True)
class NumberedFrames:
    """InternVL: a line a frame, `Frame1: <img>...</img>`.

    Lines at the rate of the rule are those of InternVL's own processor. Their number shows how long the clip is, so
    they have no time. Otherwise a fast and a slow clip would have the same lines, so each line names its time:
    `Frame2 at 0.5 s: `.
    """

    temporal: int = 1
    context: str | None = None

    def text(self, sampled: SampledFrames, start: str, context: str, end: str) -> str:
        times = ["" if sampled.even else f" at {t:.1f} s" for t in sampled.seconds]
        return numbered_lines(f"{start}{context}{end}", times)

    def shifts(self, sampled: SampledFrames) -> Sequence[int]:
        return [0] * len(sampled.indices)


@dataclass(frozen=True)
class SecondsInPositions:
    """Qwen2.5-VL: one run of tokens; time is in the rotary positions.

    A temporal patch lasts `temporal / rate` seconds (`second_per_grid_ts` of its processor), and a second is
    `tokens_per_second` positions.
    """

    temporal: int
    context: str | None
    tokens_per_second: float

    def text(self, sampled: SampledFrames, start: str, context: str, end: str) -> str:
        return f"{start}{context * len(images_of(sampled, self.temporal))}{end}"

    def shifts(self, sampled: SampledFrames) -> Sequence[int]:
        step = np.float32(self.tokens_per_second) * np.float32(self.temporal / sampled.rate)
        places = np.arange(len(images_of(sampled, self.temporal)), dtype=np.float32) * step
        return [int(p) for p in places.astype(np.int64)]


@dataclass(frozen=True)
class SecondsInText:
    """Qwen3-VL: `<0.2 seconds>` before every temporal patch, the mean of the times of its first and last frame."""

    temporal: int
    context: str | None

    def text(self, sampled: SampledFrames, start: str, context: str, end: str) -> str:
        patches = images_of(sampled, self.temporal)
        times = ((p[0] / sampled.fps + p[-1] / sampled.fps) / 2 for p in patches)
        return "".join(f"<{t:.1f} seconds>{start}{context}{end}" for t in times)

    def shifts(self, sampled: SampledFrames) -> Sequence[int]:
        return [0] * len(images_of(sampled, self.temporal))
