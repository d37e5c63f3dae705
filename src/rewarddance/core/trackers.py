"""Copies of a run's metrics for TensorBoard, Weights & Biases and trackio. `metrics.jsonl` remains the record."""

from __future__ import annotations

import math
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
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
    """Raises `ConfigError` if the package of a tracker is not installed."""
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

        name, own_id = run.resolve().name, _own_id(run, "wandb_id.txt")
        project = os.environ.get("WANDB_PROJECT", "rewarddance")
        self.run = wandb.init(project=project, name=name, id=own_id, dir=str(run), config=dict(config), resume="allow")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """Writes an SQLite file to the folder of TRACKIO_DIR, by default RUN/trackio.

    trackio asks the hub for the name of a user who is logged in; HF_HUB_OFFLINE=1 forbids this. trackio reads
    TRACKIO_DIR once in a process, so all runs of one process share the folder of the first one. A resumed run continues
    its curves; steps that are repeated appear twice.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(run.resolve() / "trackio"))
        import trackio

        name = f"{run.resolve().name}-{_own_id(run, 'trackio_id.txt')}"
        quiet: dict[str, Any] = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        with redirect_stdout(sys.stderr):  # standard output is for results
            self.run = trackio.init("rewarddance", name=name, config=dict(config), resume="allow", **quiet)
        self.finish = trackio.finish

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self.finish()


def _own_id(run: Path, name: str) -> str:
    """The id by which a tracker knows a run; a resumed run has the same. It is kept in RUN/`name`."""
    marked = run / name
    if not marked.is_file():
        marked.write_text(secrets.token_hex(4))
    return marked.read_text()


def open_trackers(names: Sequence[TrackerName], run: Path, config: Mapping[str, Any], first_step: int) -> list[Tracker]:
    """Trackers of a run.

    Args:
        first_step: the first step that will be logged.
    """
    opened: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            opened.append(TensorBoard(run, first_step))
        else:
            opened.append(WandB(run, config) if name == "wandb" else Trackio(run, config))
    return opened
