"""Data-parallel processes, as `torchrun` starts them. One process alone is the case of world size 1."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(hours=12)
"""How long processes wait for one another: the first one may build data for an hour meanwhile, which torch's own half
hour would end. Where one dies, `torchrun` ends the others at once."""

K = TypeVar("K")
V = TypeVar("V")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_leader() -> bool:
    """True in the one process that writes files and shows progress."""
    return rank() == 0


@contextmanager
def processes() -> Iterator[None]:
    """Join the process group that `torchrun` describes in the environment, and leave it at the end.

    After an error the group is left to the end of the process, which should come soon (`apps/cli.py`).
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # "cuda" now means this process's own
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    yield
    # Not after an error: leaving waits for the others, who may be waiting for us. `torchrun` ends them when we end.
    dist.destroy_process_group()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        dist.barrier()


def add_up(values: Tensor) -> Tensor:
    """Sum over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def max_over_processes(number: int) -> int:
    """The largest of all processes' numbers."""
    if world_size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def any_of(flag: bool) -> bool:
    """Whether the flag is true in any process; all of them get the same answer."""
    return bool(add_up(torch.tensor(float(flag)))) if world_size() > 1 else flag


def everyones(found: dict[K, V]) -> dict[K, V]:
    """All processes' entries together; every process gets the same."""
    if world_size() == 1:
        return found
    parts: list[dict[K, V] | None] = [None] * world_size()
    dist.all_gather_object(parts, found)
    return {k: v for part in parts if part for k, v in part.items()}


def of_every_process(state: Tensor) -> Tensor:
    """States of all processes, one below the other, (processes, ...); on the CPU."""
    told = everyones({rank(): state.cpu()})
    return torch.stack([told[i] for i in sorted(told)])


def together(work: Callable[[], V], kind: type[Exception]) -> V:
    """The result of `work`; where it raises `kind` in any process it does in all, so that none waits for another.

    Whatever processes tell each other comes after this, or before.
    """
    found: V | None = None
    error: Exception | None = None
    try:
        found = work()
    except kind as raised:
        error = raised
    if any_of(error is not None):
        raise error or kind("another process could not go on")
    return cast(V, found)


MESSAGE = 1 << 24
"""Numbers in one message of gradients: what is copied at a time."""


@torch.no_grad()
def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum every gradient over processes, `MESSAGE` numbers or one gradient at a time. None counts as zero."""
    if world_size() == 1:
        return
    chosen = list(parameters)
    for p in chosen:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    bucket: list[Tensor] = []
    for p in chosen:
        assert p.grad is not None
        if bucket and sum(g.numel() for g in bucket) + p.grad.numel() > MESSAGE:
            _add_up_together(bucket)
            bucket = []
        bucket.append(p.grad)
    _add_up_together(bucket)


def _add_up_together(grads: list[Tensor]) -> None:
    if not grads:
        return
    flat = add_up(torch.cat([g.flatten() for g in grads]))
    for g, summed in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
        g.copy_(summed.view_as(g))
