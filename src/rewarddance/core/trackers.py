"""Copies of a run's metrics for TensorBoard and Weights & Biases. `metrics.jsonl` remains the record."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rewarddance.core.errors import ConfigError
from rewarddance.core.loop_config import TrackerName


class Tracker(Protocol):
    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record the numbers of one step."""
        ...

    def close(self) -> None:
        """Write what is still in memory."""
        ...


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raises `ConfigError` where the package of a tracker is not installed."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of this name has no origin
            raise ConfigError(f"loop.trackers: {name} is not installed; pip install {name}, or leave it out")


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the metrics. Texts, nulls and truth values are left out."""
    numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {k: v for k, v in numbers.items() if math.isfinite(v)}


class TensorBoard:
    """Writes event files to RUN/tensorboard."""

    def __init__(self, run: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # steps that an earlier part of the run wrote after its last checkpoint are hidden
        purge = first_step if first_step > 0 else None
        self.writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=purge)  # type: ignore[no-untyped-call]

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Writes to the project of WANDB_PROJECT (`rewarddance` by default). WANDB_MODE=offline keeps it in RUN/wandb."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        name = run.resolve().name
        marked = run / "wandb_id.txt"  # a resumed run continues its curves
        if not marked.is_file():
            marked.write_text(secrets.token_hex(4))
        project = os.environ.get("WANDB_PROJECT", "rewarddance")
        self.run = wandb.init(
            project=project, name=name, id=marked.read_text(), dir=str(run), config=dict(config), resume="allow"
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


def open_trackers(names: Sequence[TrackerName], run: Path, config: Mapping[str, Any], first_step: int) -> list[Tracker]:
    """Trackers of a run.

    Args:
        first_step: the first step that will be logged.
    """
    opened: list[Tracker] = []
    for name in names:
        opened.append(TensorBoard(run, first_step) if name == "tensorboard" else WandB(run, config))
    return opened
