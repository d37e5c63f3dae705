"""Progress bars with rates and time left on a terminal; a line every 15 seconds elsewhere, so that logs stay short."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(stderr=True)
_SECONDS_BETWEEN_LINES = 15.0


def say(text: str) -> None:
    """Print one line for people to standard error."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class ReportProgress(Protocol):
    def __call__(self, done: int, total: int, metrics: dict[str, Any] | None = None) -> None: ...


def _formatted(metrics: dict[str, Any] | None, keys: tuple[str, ...]) -> str:
    shown = {k: metrics[k] for k in keys if metrics and isinstance(metrics.get(k), int | float)}
    return "  ".join(f"{k} {v:.4g}" for k, v in shown.items())


class _Rate:
    """Units a second since the first report, since a resumed run starts in the middle."""

    def __init__(self) -> None:
        self.start: tuple[int, float] | None = None

    def at(self, done: int) -> float | None:
        now = time.monotonic()
        if self.start is None:
            self.start = done, now
        units, seconds = done - self.start[0], now - self.start[1]
        return units / seconds if units > 1 and seconds > 0 else None  # the first unit may include waiting for a batch


_active = False
"""Whether a bar is on the screen. A bar inside another one is not shown."""


@contextmanager
def progress(title: str, *keys: str) -> Iterator[ReportProgress]:
    """A bar titled `title` that also shows the metrics named by `keys`.

    Only the process with rank 0 shows it, and only if no other bar is active.

    >>> with progress("counting") as report:
    ...     report(1, 2)
    """
    global _active
    if _active or os.environ.get("RANK", "0") != "0":
        yield lambda done, total, metrics=None: None
        return
    _active = True
    try:
        with _bar(title, keys) if console.is_terminal else _lines(title, keys) as report:
            yield report
    finally:
        _active = False


def tracked(items: Sequence[T], title: str) -> Iterator[T]:
    """The items one after the other, with a bar that counts them."""
    with progress(title) as report:
        report(0, len(items))
        for i, item in enumerate(items, 1):
            yield item
            report(i, len(items))


@contextmanager
def _lines(title: str, keys: tuple[str, ...]) -> Iterator[ReportProgress]:
    began = last = time.monotonic()
    rate = _Rate()

    def line(done: int, total: int, metrics: dict[str, Any] | None = None) -> None:
        nonlocal last
        now, per_second = time.monotonic(), rate.at(done)
        if (now - last < _SECONDS_BETWEEN_LINES and done < total) or now - began < 2:
            return
        last = now
        speed = f"{per_second:.2f}/s  {(total - done) / per_second:.0f} s left  " if per_second else ""
        say(f"{title}: {done}/{total}  {speed}{_formatted(metrics, keys)}".rstrip())

    yield line


@contextmanager
def _bar(title: str, keys: tuple[str, ...]) -> Iterator[ReportProgress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    passed, left = (TimeElapsedColumn(), TextColumn("passed,")), (TimeRemainingColumn(), TextColumn("left"))
    times = (*passed, *left, TextColumn("{task.fields[metrics]}"))
    rate = _Rate()
    with Progress(*columns, *times, console=console, transient=False) as bar:
        task = bar.add_task(title, total=None, rate="", metrics="")

        def move(done: int, total: int, metrics: dict[str, Any] | None = None) -> None:
            per_second = rate.at(done)
            shown = f"{per_second:.1f}/s" if per_second else ""
            bar.update(task, completed=done, total=total, rate=shown, metrics=_formatted(metrics, keys))

        yield move
