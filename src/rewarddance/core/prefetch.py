"""Batches that worker processes make ahead of the training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class _Steps(Dataset[Batch], Generic[Batch]):
    """Item i is the batch of step `first + i`."""

    make: Callable[[int], Batch]
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        return self.make(self.first + index)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _same(batch: Batch) -> Batch:
    return batch


def prefetched(make: Callable[[int], Batch], first: int, stop: int, workers: int = 0) -> Iterator[Batch]:
    """Yield `make(first)`, ..., `make(stop - 1)` in this order, whatever the number of workers.

    Args:
        make: the batch of a step, a pure function of the step. With workers it must be picklable (a function of a
            module, or a `functools.partial` of one). Tensors travel in shared memory.
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
        worker_init_fn=_one_thread,
        multiprocessing_context="forkserver",
    )
    yield from loader
