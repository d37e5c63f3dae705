"""Prepare the data of the next steps while this step computes: on a thread, or in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor
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


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches workers too, and the main process still needs them


def _same(batch: T) -> T:
    return batch


def prefetched(make: Callable[[int], T], first: int, stop: int, workers: int = 0) -> Iterator[T]:
    """Yield `make(first)`, ..., `make(stop - 1)` in this order, whatever the number of workers.

    Args:
        make: the batch of a step, a pure function of the step. With workers it must be picklable (a function of a
            module, or a `functools.partial` of one). Tensors travel in shared memory, NumPy arrays through a pipe.
        workers: processes that make batches, four batches ahead each. 0 makes each batch in this process when it is
            asked for.
    """
    if workers == 0:
        yield from map(make, range(first, stop))
        return
    loader = DataLoader(
        _Steps(make, first, stop - first),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4,
        collate_fn=_same,
        worker_init_fn=_begin_worker,
        multiprocessing_context=_forkserver(make),
    )
    yield from loader


def _forkserver(make: object) -> Any:
    """A context whose server has imported the program and the module of `make`, so that workers start with them."""
    context = multiprocessing.get_context("forkserver")
    function = getattr(make, "func", make)  # of a functools.partial
    module = function.__module__ if hasattr(function, "__qualname__") else type(function).__module__
    context.set_forkserver_preload(["__main__", "torch", module])
    return context


MAX_WORKERS = 14


def num_workers(requested: int | None, device: torch.device) -> int:
    """Processes that make batches: `requested`, or by default 0 on a CPU.

    Beside an accelerator the default is all CPUs of this process but 2, at most `MAX_WORKERS`. Processes of one
    machine (`torchrun`) share the CPUs.
    """
    if requested is not None:
        return requested
    if device.type == "cpu":
        return 0
    cpus = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MAX_WORKERS, cpus - 2))


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor. The copy to a GPU starts from pinned memory and is not waited for."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Feed(Generic[T]):
    """The batches of a training: calling it with a step's index returns `make(index)`. Use it as a context.

    Args:
        make: as in `prefetched`. Batches of NumPy arrays travel through pipes and need no shared memory.
        stop: indices from here on are never prepared.
        workers: as in `prefetched`.

    Attributes:
        waited: seconds in which the caller waited for batches.
    """

    def __init__(self, make: Callable[[int], T], stop: int, workers: int = 0) -> None:
        self.make, self.stop, self.workers = make, stop, workers
        self.waited = 0.0
        self._next = -1
        self._batches: Iterator[T] = iter(())

    def __call__(self, index: int) -> T:
        began = time.perf_counter()
        if index != self._next:
            self._batches = prefetched(self.make, index, max(self.stop, index + 1), self.workers)
        self._next = index + 1
        batch = next(self._batches)
        self.waited += time.perf_counter() - began
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._batches, self._next = iter(()), -1  # ends the workers
