"""Data-parallel processes, as `torchrun` starts them. A single process is the case of world size 1.

Every function here that communicates is a collective: all processes must call it, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(minutes=20)
"""How long a collective waits for the slowest process before it raises an error."""
LONG_TIMEOUT = timedelta(hours=12)
"""The same for `long_barrier`, where the leader may build data for an hour."""
BUCKET_SIZE = 1 << 24
"""Gradient elements that are copied into one buffer and sent by one all_reduce."""

K = TypeVar("K")
V = TypeVar("V")

_patient_group: dist.ProcessGroup | None = None
"""Group with the long timeout; None if there is a single process."""


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_leader() -> bool:
    """True in the process with rank 0, which writes files and shows progress."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that `torchrun` describes in the environment, and leave it at the end.

    After an error the group is not destroyed: destroying waits for the other processes, which may be waiting for this
    one. The process should then end soon, and `torchrun` ends the others.
    """
    global _patient_group
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # from now on "cuda" is this process's own GPU
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    _patient_group = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
    yield
    dist.destroy_process_group()
    _patient_group = None


def barrier() -> None:
    """Return when every process has called it."""
    if world_size() > 1:
        dist.barrier()


def long_barrier() -> None:
    """As `barrier`, with `LONG_TIMEOUT`: the other processes may wait for hours while the leader builds data."""
    if world_size() > 1:
        dist.barrier(group=_patient_group)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_reduce_max(number: int) -> int:
    """The largest number of all processes."""
    return all_reduce_each_max(number)[0]


def all_reduce_each_max(*numbers: int) -> tuple[int, ...]:
    """The largest first number of all processes, the largest second number and so on, by one collective."""
    if world_size() == 1:
        return numbers
    largest = torch.tensor(numbers)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return tuple(largest.tolist())


def any_process(flag: bool) -> bool:
    """True in every process where the flag is true in at least one."""
    return bool(all_reduce_sum(torch.tensor(float(flag)))) if world_size() > 1 else flag


def all_gather_dicts(entries: dict[K, V]) -> dict[K, V]:
    """The entries of all processes in one dictionary, the same in every process. Values are pickled on the way."""
    if world_size() == 1:
        return entries
    gathered: list[dict[K, V] | None] = [None] * world_size()
    dist.all_gather_object(gathered, entries)
    return {k: v for part in gathered if part for k, v in part.items()}


def all_gather_stacked(state: Tensor) -> Tensor:
    """Tensors of one shape from all processes, stacked by rank: (world size, ...), on the CPU."""
    states = all_gather_dicts({rank(): state.cpu()})
    return torch.stack([states[i] for i in sorted(states)])


@torch.no_grad()
def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum every gradient over processes, in buckets of `BUCKET_SIZE` elements. A missing gradient counts as zero."""
    if world_size() == 1:
        return
    trained = list(parameters)
    for p in trained:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    bucket: list[Tensor] = []
    for p in trained:
        assert p.grad is not None
        if bucket and sum(g.numel() for g in bucket) + p.grad.numel() > BUCKET_SIZE:
            _all_reduce_bucket(bucket)
            bucket = []
        bucket.append(p.grad)
    _all_reduce_bucket(bucket)


def _all_reduce_bucket(gradients: list[Tensor]) -> None:
    if not gradients:
        return
    flat = all_reduce_sum(torch.cat([g.flatten() for g in gradients]))
    for g, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        g.copy_(summed.view_as(g))
