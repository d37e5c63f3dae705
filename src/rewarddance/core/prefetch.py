"""Prepare the data of the next step on a thread while this step computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Calling it with an index returns `make(index)` and starts `make(index + 1)` on another thread.

    Decoding pictures releases Python's global lock, so it takes no time from a step that lasts longer. An error in
    `make` is raised by the call that asks for its index.

    Args:
        make: a pure function of the index.
        end: indices from here on are never prepared.
    """

    def __init__(self, make: Callable[[int], T], end: int) -> None:
        self.make, self.end = make, end
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, index: int) -> T:
        prepared, self._next = self._next, None
        result = prepared[1].result() if prepared and prepared[0] == index else self.make(index)
        if index + 1 < self.end:
            self._next = index + 1, self._thread.submit(self.make, index + 1)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
