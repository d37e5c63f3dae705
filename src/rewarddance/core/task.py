"""The task port: the source of prompts, held-out prompts, the gold standard and supervised batches.

The embedded world is one task (`world/task.py`), a user's file of prompts is another (`data/prompt_task.py`). Jobs find
a task by its name and know nothing else about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rewarddance.core.media import Media


@dataclass(frozen=True)
class Prompt:
    """A request to a generator.

    Attributes:
        category: group for reports, "" without one.
        condition: the picture to start from (image-to-video), None for text alone.
        fields: further columns of the file that it came from.
    """

    text: str
    category: str = ""
    condition: Media | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


Request = str | Prompt
"""What a generator draws: a text, or a text with the picture that the clip begins with."""
Gold = Callable[[Sequence[Request], Sequence[Media], Sequence[Media]], list[float]]
"""A measure that training never sees. Arguments: N prompts, N pictures, and for each the picture that the generator
drew before training (from another noise of the same prompt in probes, from the same noise in evaluations)."""
Criteria = Callable[[Sequence[Request], Sequence[Media]], Mapping[str, Sequence[float]]]
"""The parts of a gold standard by name, each in [0, 1], of N prompts and N samples."""


Rate = Callable[[NDArray[np.float64], int], NDArray[np.int64]]
"""Simulated raters: scores from 0 to 2, (N, K, raters), of K samples of N prompts, from the samples' values of one
criterion, (N, K) in [0, 1], and a seed. The raters are the same for every seed. The seed draws the noise of their
scores."""


def text_of(request: Request) -> str:
    return request if isinstance(request, str) else request.text


def texts_of(requests: Sequence[Request]) -> list[str]:
    return [text_of(r) for r in requests]


def picture_of(request: Request) -> Media | None:
    """The picture that the sample begins with; None for text alone."""
    return None if isinstance(request, str) else request.condition


@dataclass(frozen=True)
class Drawn:
    """What a generator draws, for `Task.check`.

    Attributes:
        side: height and width in pixels.
        num_frames: 1 for pictures.
        fps: frames per second of clips, None for pictures.
        from_picture: whether every sample begins with a given picture (image-to-video).
    """

    side: int
    num_frames: int = 1
    fps: float | None = None
    from_picture: bool = False


class Task(Protocol):
    @property
    def name(self) -> str:
        """The name of the task in configurations and run folders."""
        ...

    @property
    def gold(self) -> Gold | None:
        """The measure of probes and evaluations. Without one (None) nothing can notice hacking."""
        ...

    @property
    def gold_name(self) -> str:
        """The name of `gold` for axes and tables."""
        ...

    @property
    def features(self) -> str | None:
        """Name of the VLM whose vision tower measures diversity; None takes the judge's."""
        ...

    @property
    def criteria(self) -> Criteria | None:
        """The parts of `gold`, with `gold` itself as `overall`; None if it has none. Tasks of clips have parts."""
        ...

    @property
    def rate(self) -> Rate | None:
        """Simulated raters; None if the task has none."""
        ...

    def prompts(self, num_train: int, num_probe: int, seed: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        """Prompts to train on, and other prompts for probes. At most as many as are asked for."""
        ...

    def benchmark(self) -> tuple[Prompt, ...]:
        """Held-out prompts for evaluations, with categories.

        Raises:
            ConfigError: the task has none.
        """
        ...

    def development(self) -> tuple[Prompt, ...]:
        """Held-out prompts to choose settings on; none of them is in `benchmark`.

        Raises:
            ConfigError: the task has none.
        """
        ...

    def second_benchmark(self, seed: int) -> tuple[Prompt, ...]:
        """Held-out prompts on which no setting was chosen; none of them is in `benchmark` or `development`.

        Empty if the task has none.
        """
        ...

    def supervised_batch(self, seed: int, name: str, index: int, size: int) -> tuple[Sequence[Request], Tensor]:
        """`size` captions with their pictures, (B, 3, H, W) in [0, 1], or clips, (B, F, 3, H, W); a pure function of
        its arguments.

        Raises:
            ConfigError: the task has no pictures.
        """
        ...

    def reference_pictures(self, prompts: Sequence[Request], num: int, seed: int) -> Tensor:
        """`num` right pictures of every prompt, (P num, 3, H, W), or clips, (P num, F, 3, H, W), in [0, 1], as a
        perfect generator would draw them.

        Raises:
            ConfigError: the task cannot draw pictures.
        """
        ...

    def check(self, drawn: Drawn) -> None:
        """Raises `ConfigError` if a generator that draws this cannot do the task."""
        ...

    def build_preferences(self, folder: Path, seed: int) -> None:
        """Write preferences to train a judge on (`train.parquet`, `id.parquet`, `ood.parquet`).

        Raises:
            ConfigError: the task cannot make any.
        """
        ...
