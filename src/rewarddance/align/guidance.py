"""Regression on velocities always runs without guidance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rewarddance.core.protocols import Tunable


@contextmanager
def without_guidance(generator: Tunable) -> Iterator[None]:
    """A context with a guidance scale of 1, for conditions and velocities.

    The velocity of the data is noise - x. A guided velocity combines two velocities and must not be regressed on it.
    """
    scale, generator.guidance = generator.guidance, 1.0
    try:
        yield
    finally:
        generator.guidance = scale
