"""Prepare the data of the next steps while this step computes: on a thread, or in worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

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


@dataclass(frozen=True)
class _Steps(Dataset[T], Generic[T]):
    """Item i is the batch of step `first + i`."""

    make: Callable[[int], T]
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> T:
        return self.make(self.first + index)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _same(batch: T) -> T:
    return batch


def _module_of(make: object) -> list[str]:
    """The module of a function, or of the function in a `functools.partial`, unless it is the main program."""
    name = getattr(getattr(make, "func", make), "__module__", None)
    return [] if name in (None, "__main__") else [str(name)]


def prefetched(make: Callable[[int], T], first: int, stop: int, workers: int = 0) -> Iterator[T]:
    """Yield `make(first)`, ..., `make(stop - 1)` in this order, whatever the number of workers.

    Args:
        make: the batch of a step, a pure function of the step. With workers it must be picklable (a function of a
            module, or a `functools.partial` of one). Tensors travel in shared memory,
            NumPy arrays through a pipe.
        workers: processes that make batches, four batches ahead each. 0 makes each batch in this process when it is
            asked for.
    """
    if workers == 0:
        yield from map(make, range(first, stop))
        return
    # the workers' parent imports what they need once, before it is started by the first call
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, *_module_of(make)])
    loader = DataLoader(
        _Steps(make, first, stop - first),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4,
        collate_fn=_same,
        worker_init_fn=_one_thread,
        multiprocessing_context="forkserver",
    )
    yield from loader
