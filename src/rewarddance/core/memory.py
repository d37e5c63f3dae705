"""How the process keeps its memory. No torch here, so that the command line stays quick."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameters of glibc's `mallopt`."""


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed instead of giving it back to the system page by page.

    Packed passes free and take large tensors all the time; getting fresh zeroed pages for each was up to a quarter of
    the time on a CPU. Costs some resident memory. False where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(k, v) == 1 for k, v in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 1 << 30), (TOP_PAD, 64 << 20)))


def forget_peak() -> None:
    """Let `peak_resident_mib` count from what is held now; where the system cannot, it counts from the start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident_mib() -> float:
    """Most main memory that this process has held since its start or `forget_peak`, MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def out_of_memory(error: RuntimeError) -> bool:
    """Is it torch's error of an accelerator that has no memory left, or its nameless one of main memory?"""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
