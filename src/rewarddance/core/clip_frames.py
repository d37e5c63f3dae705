"""Which frames of a clip a judge sees. Saved with the judge. No torch here, so that `--help` stays fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config

MIN_FRAMES = 2
"""A clip is shown with at least this many frames, if it has them. One frame shows no motion."""


@dataclass(frozen=True)
class SampledFrames:
    """Frames of one clip.

    Attributes:
        indices: of the frames, ascending; a frame may occur several times.
        fps: frames per second of the clip.
        rate: sampled frames per second.
        even: the frames are 1 / `rate` seconds apart, and `rate` is the `fps` of the rule. Their number then tells how
            long the clip is.
    """

    indices: tuple[int, ...]
    fps: float
    rate: float
    even: bool

    @property
    def seconds(self) -> tuple[float, ...]:
        """When each frame is shown first, from the clip's beginning."""
        return tuple(i / self.fps for i in self.indices)


class ClipFrames(Config):
    """The rule by which frames of a clip are chosen: by time (`fps`), or by number (`num_frames`).

    By time: the frames that a player shows at 0, 1/fps, 2/fps, ... seconds, up to the time of the last frame. A clip
    with fewer frames per second than that shows frames several times, and each is still computed once. The same clip
    saved at another multiple of `fps` gives the same frames. A faster clip gives fewer.

    By number: frames `round(k (F - 1) / (num_frames - 1))` of F, with the first and the last one; all frames of a
    shorter clip. Clips of any speed then have equally many frames.
    """

    fps: float | None = Field(2.0, gt=0)
    """Frames of a second that are looked at (VideoAlign and Qwen-VL: 2)."""
    num_frames: int | None = Field(None, ge=MIN_FRAMES)
    """Frames of a clip that are looked at, in place of `fps`."""
    max_frames: int = Field(32, ge=MIN_FRAMES)
    """With `fps`: largest number of frames. A clip that would show more shows this many, chosen by number."""

    @model_validator(mode="before")
    @classmethod
    def _number_replaces_rate(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("num_frames") is not None and "fps" not in given:
            return {**given, "fps": None}
        return given

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.fps is None) == (self.num_frames is None):
            raise ValueError("frames of a clip are chosen by fps or by num_frames; give one of them")
        return self

    def at(self, fps: float) -> ClipFrames:
        """The rule by time with another `fps`, and the same `max_frames`."""
        return ClipFrames(fps=fps, max_frames=self.max_frames)

    def of(self, num: int, fps: float) -> SampledFrames:
        """The frames of a clip of `num` frames, `fps` a second.

        >>> ClipFrames(fps=4).of(9, 8.0).indices, ClipFrames(fps=4).of(9, 16.0).indices
        ((0, 2, 4, 6, 8), (0, 4, 8))
        >>> ClipFrames(num_frames=3).of(9, 8.0).indices
        (0, 4, 8)
        """
        return _sampled(self, num, fps)


@lru_cache(4096)
def _sampled(rule: ClipFrames, num: int, fps: float) -> SampledFrames:
    wanted = rule.num_frames or rule.max_frames
    if rule.fps is not None:
        length = math.floor((num - 1) / fps * rule.fps + 1e-6) + 1
        if MIN_FRAMES <= length <= rule.max_frames:
            # the small number absorbs the rounding of a quotient such as 1 / 3 * 24
            indices = tuple(min(num - 1, math.floor(k / rule.fps * fps + 1e-6)) for k in range(length))
            return SampledFrames(indices, fps, rule.fps, True)
        wanted = max(MIN_FRAMES, min(length, rule.max_frames))
    if num <= wanted:
        return SampledFrames(tuple(range(num)), fps, fps, False)
    spread = tuple(math.floor(k * (num - 1) / (wanted - 1) + 0.5) for k in range(wanted))
    return SampledFrames(spread, fps, (wanted - 1) * fps / (num - 1), False)
