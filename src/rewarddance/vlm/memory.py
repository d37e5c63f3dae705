"""Measures how much memory a pass takes and how much is free."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of living storages that were created in this context (`now`), and their `peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def note(self, tensor: Tensor) -> None:
        """Count the storage of a tensor."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Peak memory of `run` beyond what is allocated before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return int(torch.cuda.max_memory_allocated(device) - before)
    live = LiveBytes()
    with live:
        run()
    return live.peak


def free_bytes(device: torch.device) -> int:
    """Free memory: on a GPU the driver's and what torch has reserved but does not use, else main memory."""
    if device.type == "cuda":
        unused: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        left: int = torch.cuda.mem_get_info(device)[0]
        return left + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


TrialPass = tuple[Callable[[], Any], int]
"""A small pass whose result is not used, and its units (tokens)."""


@dataclass
class MemoryBudget:
    """How many units (tokens) one pass may process.

    Args:
        share: share of the free memory for one pass without gradients.
        measured: if False, the caller's limits hold and nothing is measured.
    """

    share: float
    measured: bool = True
    _bytes: dict[str, float] = field(default_factory=dict, repr=False)

    def units(self, kind: str, most: int, trial: Callable[[], TrialPass | None], device: torch.device) -> int:
        """`most`, or fewer where a pass with `most` units would not fit.

        Bytes a unit are measured once for each kind of pass, on the pass that `trial` returns. The result is `most` if
        there is no such pass, or if gradients are enabled.
        """
        if not self.measured or torch.is_grad_enabled():
            return most
        if kind not in self._bytes:
            trial_pass = trial()
            if trial_pass is None:
                return most
            run, num_units = trial_pass
            if torch.is_autocast_enabled(device.type):
                run()  # the first pass fills autocast's cache of trained weights, which does not count
            self._bytes[kind] = max(1.0, peak_bytes(run, device) / num_units)
        return max(1, min(most, int(self.share * free_bytes(device) / self._bytes[kind])))
