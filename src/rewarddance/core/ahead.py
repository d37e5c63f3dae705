"""Prepare the next step's data on a thread while this step computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`make(index)`, with `make(index + 1)` already under way on another thread when it returns.

    Decoding pictures releases the interpreter, so it costs the step nothing as long as it takes less time than one.
    An error in `make` is raised by the call that asks for that index.

    Args:
        make: a pure function of the index.
        end: no index from here on is prepared.
    """

    def __init__(self, make: Callable[[int], T], end: int) -> None:
        self.make, self.end = make, end
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._coming: tuple[int, Future[T]] | None = None

    def __call__(self, index: int) -> T:
        coming, self._coming = self._coming, None
        found = coming[1].result() if coming and coming[0] == index else self.make(index)
        if index + 1 < self.end:
            self._coming = index + 1, self._thread.submit(self.make, index + 1)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
