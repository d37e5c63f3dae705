"""Named random streams: the same seed and names always give the same numbers, on every machine."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose, independent of every stream with other names.

    Args:
        seed: the run's seed, 0 or more.
        names: what the stream is for, for example ``("preferences", 17)``.

    >>> bool(stream(0, "a").integers(1 << 30) == stream(0, "a").integers(1 << 30))
    True
    >>> bool(stream(0, "a").integers(1 << 30) == stream(0, "b").integers(1 << 30))
    False
    """
    words = [n if isinstance(n, int) else zlib.crc32(n.encode()) for n in names]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))
