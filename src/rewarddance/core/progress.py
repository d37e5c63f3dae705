"""Progress bars with rates and time left, on a terminal; sparse lines elsewhere, so that logs stay readable."""

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
_QUIET_SECONDS = 15.0  # between two lines when the output is not a terminal


class Report(Protocol):
    def __call__(self, done: int, total: int, metrics: dict[str, Any] | None = None) -> None: ...


def _figures(metrics: dict[str, Any] | None, keys: tuple[str, ...]) -> str:
    shown = {k: metrics[k] for k in keys if metrics and isinstance(metrics.get(k), int | float)}
    return "  ".join(f"{k} {v:.4g}" for k, v in shown.items())


class _Pace:
    """Units a second since the first report: a resumed run begins in the middle, and the first unit may come late."""

    def __init__(self) -> None:
        self.start: tuple[int, float] | None = None

    def at(self, done: int) -> float | None:
        now = time.monotonic()
        if self.start is None:
            self.start = done, now
        units, seconds = done - self.start[0], now - self.start[1]
        return units / seconds if units > 1 and seconds > 0 else None  # the first of a batch brings the wait for all


_active = False
"""Whether a bar is on the screen: what is measured within a training shows none of its own."""


@contextmanager
def progress(title: str, *keys: str) -> Iterator[Report]:
    """A bar titled `title` that also shows the metrics named by `keys`.

    Within another one, and in all processes of torchrun's but the first, it shows nothing.

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
    """The items one after the other, with a bar of how many are done."""
    with progress(title) as report:
        report(0, len(items))
        for i, item in enumerate(items, 1):
            yield item
            report(i, len(items))


@contextmanager
def _lines(title: str, keys: tuple[str, ...]) -> Iterator[Report]:
    began = last = time.monotonic()
    pace = _Pace()

    def line(done: int, total: int, metrics: dict[str, Any] | None = None) -> None:
        nonlocal last
        now, rate = time.monotonic(), pace.at(done)
        if (now - last < _QUIET_SECONDS and done < total) or now - began < 2:
            return
        last = now
        speed = f"{rate:.2f}/s  {(total - done) / rate:.0f} s left  " if rate else ""
        text = f"{title}: {done}/{total}  {speed}{_figures(metrics, keys)}"
        console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)

    yield line


@contextmanager
def _bar(title: str, keys: tuple[str, ...]) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    passed, left = (TimeElapsedColumn(), TextColumn("passed,")), (TimeRemainingColumn(), TextColumn("left"))
    times = (*passed, *left, TextColumn("{task.fields[figures]}"))
    pace = _Pace()
    with Progress(*columns, *times, console=console, transient=False) as bar:
        task = bar.add_task(title, total=None, rate="", figures="")

        def move(done: int, total: int, metrics: dict[str, Any] | None = None) -> None:
            rate = pace.at(done)
            shown = f"{rate:.1f}/s" if rate else ""
            bar.update(task, completed=done, total=total, rate=shown, figures=_figures(metrics, keys))

        yield move
