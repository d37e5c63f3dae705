"""Progress bars with rates and time left, on a terminal; sparse lines elsewhere, so that logs stay readable."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)
_QUIET_SECONDS = 15.0  # between two lines when the output is not a terminal


class Report(Protocol):
    def __call__(self, done: int, total: int, metrics: dict[str, Any] | None = None) -> None: ...


def _figures(metrics: dict[str, Any] | None, keys: tuple[str, ...]) -> str:
    shown = {k: metrics[k] for k in keys if metrics and isinstance(metrics.get(k), int | float)}
    return "  ".join(f"{k} {v:.4g}" for k, v in shown.items())


@contextmanager
def progress(title: str, *keys: str) -> Iterator[Report]:
    """A bar titled `title` that also shows the metrics named by `keys`.

    >>> with progress("counting") as report:
    ...     report(1, 2)
    """
    began = last = time.monotonic()
    start: int | None = None  # a resumed run begins in the middle
    if not console.is_terminal:

        def line(done: int, total: int, metrics: dict[str, Any] | None = None) -> None:
            nonlocal last, start
            now = time.monotonic()
            start = max(0, done - 1) if start is None else start
            if (now - last < _QUIET_SECONDS and done < total) or now - began < 2:
                return
            last, rate = now, (done - start) / (now - began)
            left = (total - done) / rate if rate else 0
            text = f"{title}: {done}/{total}  {rate:.2f}/s  {left:.0f} s left  {_figures(metrics, keys)}"
            console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    passed, left = (TimeElapsedColumn(), TextColumn("passed,")), (TimeRemainingColumn(), TextColumn("left"))
    times = (*passed, *left, TextColumn("{task.fields[figures]}"))
    with Progress(*columns, *times, console=console, transient=False) as bar:
        task = bar.add_task(title, total=None, rate="", figures="")

        def move(done: int, total: int, metrics: dict[str, Any] | None = None) -> None:
            nonlocal start
            start = max(0, done - 1) if start is None else start
            rate = f"{(done - start) / max(1e-9, time.monotonic() - began):.1f}/s"
            bar.update(task, completed=done, total=total, rate=rate, figures=_figures(metrics, keys))

        yield move
