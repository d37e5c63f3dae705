"""The task port: the source of prompts, held-out prompts, the gold standard and supervised batches.

The embedded world is one task (`world/task.py`), a user's file of prompts is another (`data/prompt_task.py`). Jobs find
a task by its name and know nothing else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rewarddance.core.media import Media

Gold = Callable[[Sequence[str], Sequence[Media], Sequence[Media]], list[float]]
"""A measure that training never sees. Arguments: N prompts, N pictures, and for each the picture that the generator
drew before training (from another noise of the same prompt in probes, from the same noise in evaluations)."""


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
    fields: Mapping[str, Any] = field(default_factory=dict)


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

    def prompts(self, num_train: int, num_probe: int, seed: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        """Prompts to train on, and other prompts for probes. At most as many as are asked for."""
        ...

    def benchmark(self) -> tuple[Prompt, ...]:
        """Held-out prompts for evaluations, with categories.

        Raises:
            ConfigError: the task has none.
        """
        ...

    def supervised_batch(self, seed: int, name: str, index: int, size: int) -> tuple[list[str], Tensor]:
        """`size` captions with their pictures, (B, 3, H, W) in [0, 1]; a pure function of its arguments.

        Raises:
            ConfigError: the task has no pictures.
        """
        ...

    def reference_pictures(self, prompts: Sequence[str], num: int, seed: int) -> Tensor:
        """`num` right pictures of every prompt, (P num, 3, H, W) in [0, 1], as a perfect generator would draw them.

        Raises:
            ConfigError: the task cannot draw pictures.
        """
        ...

    def check(self, side: int) -> None:
        """Raises `ConfigError` where a generator of pictures with this side (pixels) cannot do the task."""
        ...

    def build_preferences(self, folder: Path, seed: int) -> None:
        """Write preferences to train a judge on (`train.parquet`, `id.parquet`, `ood.parquet`).

        Raises:
            ConfigError: the task cannot make any.
        """
        ...
