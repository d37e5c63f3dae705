"""How much memory a pass takes and how much there is: measured, not guessed."""

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
    """Bytes of all storages that operations inside made and that are alive, and the most that ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def note(self, tensor: Tensor) -> None:
        """Count a tensor that was made before."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """The most memory that `run` held beyond what was held before."""
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
    """What can still be had: on a GPU what the driver has left and what torch keeps unused, else main memory."""
    if device.type == "cuda":
        unused: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        left: int = torch.cuda.mem_get_info(device)[0]
        return left + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


Probe = tuple[Callable[[], Any], int]
"""A small pass that can be thrown away, and its units."""


@dataclass
class Room:
    """How much a pass may take on at once.

    Args:
        share: of the free memory, for one pass without gradients; measured: False trusts the caller's limits.
    """

    share: float
    measured: bool = True
    _bytes: dict[str, float] = field(default_factory=dict, repr=False)

    def units(self, what: str, most: int, probe: Callable[[], Probe | None], device: torch.device) -> int:
        """`most`, or fewer where a pass of so many would not fit.

        What a unit takes is measured once, on the pass that `probe` gives; until then, and where gradients are kept
        from pass to pass, `most` stands.
        """
        if not self.measured or torch.is_grad_enabled():
            return most
        if what not in self._bytes:
            sample = probe()
            if sample is None:
                return most
            if torch.is_autocast_enabled(device.type):
                sample[0]()  # keeps copies of trained weights, which later passes share
            self._bytes[what] = max(1.0, peak_bytes(sample[0], device) / sample[1])
        return max(1, min(most, int(self.share * free_bytes(device) / self._bytes[what])))
