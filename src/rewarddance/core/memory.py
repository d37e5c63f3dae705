"""How the process keeps its memory. No torch here, so that the command line starts fast."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameters of glibc's `mallopt`."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the system page by page.

    Packed passes free and allocate large tensors all the time; zeroed pages from the system took up to a quarter of
    the time on a CPU. The price is some resident memory. Returns False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(k, v) == 1 for k, v in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 1 << 30), (TOP_PAD, 64 << 20)))


def reset_peak() -> None:
    """Make `peak_resident_mib` count from now on. Without effect where the system does not allow it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident_mib() -> float:
    """The most main memory that this process has held since its start or the last `reset_peak`, MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised the error because memory ran out: an accelerator's, or main memory (which has no class)."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
