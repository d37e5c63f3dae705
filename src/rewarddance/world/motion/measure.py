"""Numbers for a track's motion: straight lines, oscillations, orbits and growth, fitted by least squares.

Every fit gives a rate in units of seconds and the root mean square error in pixels. Only present frames count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rewarddance.world.motion.tracks import Array, Track

CYCLES = np.arange(0.8, 3.01, 0.1)
"""Cycles in a whole clip that an oscillation is fitted with."""
_PHASES = np.arange(6) / 6


@dataclass(frozen=True)
class Line:
    """Fit of `a + slope t`. Slope: pixels per second; rms: error in pixels; change: slope times the clip's seconds.

    Attributes:
        steady: net change as a share of the path, |net| / path, in [0, 1]; 1 for a path of length 0.
    """

    slope: float
    rms: float
    change: float
    steady: float


@dataclass(frozen=True)
class Swing:
    """Fit of an oscillation along one axis. Cycles per second, height in pixels from end to end, error in pixels.

    Attributes:
        explained: share of the variance that the fit explains, in [0, 1].
        returning: 1 minus |last - first| / range, in [0, 1]: high if the object comes back.
    """

    cycles: float
    height: float
    rms: float
    explained: float
    returning: float


@dataclass(frozen=True)
class Orbit:
    """Way around another track. Turns per second, mean distance, its spread relative to the mean, error in pixels.

    Attributes:
        steady: |net angle| / path of the angle, in [0, 1].
        turned: turns in the whole clip.
    """

    turns: float
    radius: float
    spread: float
    rms: float
    steady: float
    turned: float


def _times(present: NDArray[np.bool_], seconds: float) -> Array:
    return np.asarray(np.flatnonzero(present) * (seconds / (len(present) - 1)), np.float64)


def line(values: Array, present: NDArray[np.bool_], seconds: float) -> Line:
    """Fit one coordinate, (F,), of a clip that lasts `seconds`."""
    y, t = values[present], _times(present, seconds)
    if len(y) < 3:
        return Line(0.0, 0.0, 0.0, 1.0)
    t = t - t.mean()
    slope = float(t @ y / (t @ t))
    rms = float(np.sqrt(np.mean((y - y.mean() - slope * t) ** 2)))
    path = float(abs(np.diff(y)).sum())
    steady = abs(float(y[-1] - y[0])) / path if path > 1e-6 else 1.0
    return Line(slope, rms, slope * seconds, steady)


@lru_cache(256)
def _designs(present: bytes) -> tuple[Array, Array, Array]:
    """Columns (G, n, 3) of every oscillation at n present frames, their pseudo-inverses (G, 3, n), and cycles (G,)."""
    mask = np.frombuffer(present, np.bool_)
    t = np.flatnonzero(mask) / (len(mask) - 1)
    bases, cycles = [], []
    for c in CYCLES:
        bases += [np.stack([np.ones_like(t), abs(np.sin(math.pi * (c * t + p))), np.zeros_like(t)], 1) for p in _PHASES]
        bases.append(np.stack([np.ones_like(t), np.sin(2 * math.pi * c * t), np.cos(2 * math.pi * c * t)], 1))
        cycles += [c] * (len(_PHASES) + 1)
    stacked = np.stack(bases)
    return stacked, np.linalg.pinv(stacked), np.array(cycles)


def swing(values: Array, present: NDArray[np.bool_], seconds: float) -> Swing:
    """Fit |sin| (a ball that bounces) and sine oscillations to one coordinate, (F,), and keep the best."""
    y = values[present]
    around = y - y.mean()
    total = float(around @ around)
    if len(y) < 5 or total < 1e-3:
        return Swing(0.0, 0.0, math.sqrt(total / max(len(y), 1)), 0.0, 1.0)
    bases, inverses, cycles = _designs(present.tobytes())
    fitted = np.einsum("gnk,gk->gn", bases, inverses @ around)
    errors = ((fitted - around) ** 2).sum(1)
    best = int(errors.argmin())
    span = float(np.ptp(y))
    return Swing(
        cycles=float(cycles[best]) / seconds,
        height=float(np.ptp(fitted[best])),
        rms=math.sqrt(float(errors[best]) / len(y)),
        explained=1 - float(errors[best]) / total,
        returning=1 - abs(float(y[-1] - y[0])) / max(span, 1e-6),
    )


def orbit(track: Track, around: Track, seconds: float) -> Orbit | None:
    """How a track circles another one; None where both are present in fewer than 4 frames."""
    both = track.present & around.present
    if both.sum() < 4:
        return None
    middle = around.centres[both].mean(0)
    dx, dy = (track.centres[both] - middle).T
    radius, angle = np.hypot(dx, dy), np.unwrap(np.arctan2(dy, dx))
    fit = line(_fill(angle, both), both, seconds)
    mean = max(float(radius.mean()), 1e-6)
    rms = math.hypot(float(radius.std()), mean * fit.rms)
    turned = abs(float(angle[-1] - angle[0])) / (2 * math.pi)
    return Orbit(abs(fit.slope) / (2 * math.pi), mean, float(radius.std()) / mean, rms, fit.steady, turned)


def _fill(values: Array, present: NDArray[np.bool_]) -> Array:
    filled = np.zeros(len(present))
    filled[present] = values
    return filled
