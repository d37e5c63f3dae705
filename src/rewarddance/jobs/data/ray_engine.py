"""The Ray engine of `data build --prompts`: actors of Ray Data draw the parts, each with one generator.

Only numbers of parts travel through Ray. An actor writes its parts to the folder, under the same lock as the local
engine, so all nodes must share the folder. Ray starts an actor again that died; its part is then drawn again from the
beginning.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.progress import ReportProgress
from rewarddance.jobs.data.pictures import Parts, PoolEngine

MAX_BLOCKS = 1000
"""Largest number of tasks of Ray Data in a round. A task draws one part, or several if there are more parts."""


def ray_engine(actors: int | None = None) -> PoolEngine:
    """An engine that draws on `RAY_ADDRESS`, on a Ray that is already running here, or on one that it starts and ends.

    Args:
        actors: processes that draw, one GPU each, or one CPU each if Ray has no GPU. By default as many as Ray has.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"data build --engine ray needs Ray ({error}): pip install 'rewarddance[ray]'; or use --engine local"
        ) from None

    def draw(parts: Parts, report: ReportProgress) -> None:
        with _connected(ray):
            try:
                _draw_rounds(ray, parts, report, actors)
            except ray.exceptions.RayError as error:
                raise RunError(f"{parts.folder}: Ray stopped: {_reason(error)}; the same command continues") from error

    return draw


class PartDrawer:
    """An actor. It loads the generator when it draws its first part, and keeps it."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.generator = cache(parts.load)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Numbers of parts, and for each whether this actor has written it."""
        return {"start": batch["start"], "drawn": [self.parts.draw(int(s), self.generator) for s in batch["start"]]}


def _draw_rounds(ray: Any, parts: Parts, report: ReportProgress, actors: int | None) -> None:
    total = ray.cluster_resources()
    gpus = int(total.get("GPU", 0))
    actors = actors or gpus or max(1, int(total.get("CPU", 1)))
    num, progressed = len(parts.prompts), True
    while progressed and (missing := parts.missing()):  # another round takes over the parts of a killed process
        progressed = False
        pool = ray.data.ActorPoolStrategy(size=min(actors, len(missing)), max_tasks_in_flight_per_actor=1)
        numbers = [{"start": start} for start in missing]
        results = ray.data.from_items(numbers, override_num_blocks=min(len(numbers), MAX_BLOCKS)).map_batches(
            PartDrawer,
            fn_constructor_args=(parts,),
            batch_size=1,
            compute=pool,
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        results.context.enable_progress_bars = results.context.print_on_execution_start = False
        results.context.execution_no_progress_timeout_s = -1  # by default Ray stops if a part takes 30 minutes
        done = num - sum(min(parts.size, num - start) for start in missing)
        report(done, num)
        for result in results.iter_rows():
            if result["drawn"] and not parts.path(result["start"]).is_file():
                raise RunError(
                    f"{parts.folder}: an actor has written part {result['start']}, but this process does not see it; "
                    "name an --out on a file system that all nodes of Ray share"
                )
            progressed |= bool(result["drawn"])
            done += min(parts.size, num - result["start"])
            report(done, num)


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """A Ray that is already connected stays so; another one is connected, or started, and left at the end."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        address = os.environ.get("RAY_ADDRESS", "not set")
        raise RunError(f"no Ray answers (RAY_ADDRESS is {address}): {_reason(error)}") from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _reason(error: Exception) -> str:
    """The line of an error of Ray that names the error in the actor; the other lines are tracebacks and wrappers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(?!ray\.exceptions\.)[\w.]+: \S", line)]
    return (named or lines or [type(error).__name__])[-1]
