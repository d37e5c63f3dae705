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
    return np.random.Generator(np.random.PCG64(_sequence(seed, names)))


def seed_of(seed: int, *names: str | int) -> int:
    """A seed for another library's generator, as independent of other names as `stream` is."""
    return int(_sequence(seed, names).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sequence(seed: int, names: tuple[str | int, ...]) -> np.random.SeedSequence:
    words = [n if isinstance(n, int) else zlib.crc32(n.encode()) for n in names]
    return np.random.SeedSequence([seed, *words])
