"""Compares a track with an act: whether the object is the asked one, and whether it does the asked action.

A track is one object over the frames of a clip (`tracks.py`). An act is an object and its action, as a prompt asks for
them (`scene.py`). Each family of actions has one reader, which fits the track's motion (`measure.py`) and turns the
fitted numbers into answers in [0, 1] by linear ramps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewarddance.world.motion.measure import Line, line, orbit, swing
from rewarddance.world.motion.scene import FAMILY, HEADING, RATE_LINE, Act, Family
from rewarddance.world.motion.tracks import Array, Track
from rewarddance.world.oracle import both_right, named, ramp
from rewarddance.world.scene import COLOURS, SHAPES


@dataclass(frozen=True)
class Doing:
    """What a track does, compared with an act. The numbers are in [0, 1]; 1 is best.

    Attributes:
        done: whether the object does the asked action in the asked direction, at any speed.
        moved: whether there is motion of the asked family, in any direction; for events a change of the asked kind, and
            for `staying still` the absence of motion.
        smooth: how closely the course follows the ideal course of the family; for events how little the object moves.
        paced: whether the object is as fast as asked; 1 if the act leaves the speed open, and for events and rest.
        words: `yes` or `no` for `done`, with the measured rate or distance if there is one.
    """

    done: float
    moved: float
    smooth: float
    paced: float
    words: str


def kind_agreement(track: Track, act: Act) -> float:
    """How well a track has the asked colour and shape, in [0, 1].

    The colour is the mean share of pixels of that colour, and the shape has the mean fit of its template, both over the
    frames in which the object is present. For `turning`, the colour counts in the frames before the change only.
    """
    colours = track.colours[track.present]
    if act.into is not None:
        colours = colours[: change_of_colour(track, act)]
    share = float(colours[:, COLOURS.index(act.colour)].mean())
    shape = named(track.shapes[track.present].mean(0).astype(np.float32), SHAPES.index(act.shape))
    return both_right(ramp(share, 0.3, 0.85), shape, 1.0)


def change_of_colour(track: Track, act: Act) -> int:
    """The number of present frames before the asked change of colour, where it fits best.

    From 1 to the number of present frames minus 1. It is 1 for an act without a change of colour, and for a track of
    fewer than two present frames.
    """
    colours = track.colours[track.present]
    if len(colours) < 2 or act.into is None:
        return 1
    gain = np.cumsum(colours[:, COLOURS.index(act.colour)] - colours[:, COLOURS.index(act.into)])
    return 1 + int(gain[:-1].argmax())


def pace(rate: float, act: Act, family: Family) -> float:
    """Whether a rate is as fast as asked, in [0, 1]; 1 if the act leaves the speed open.

    The line between slow and fast is `RATE_LINE`. The value grows linearly with the logarithm of the rate, from 0 at
    0.35 octaves on the wrong side of the line to 1 at 0.2 octaves on the right side.
    """
    if act.speed is None:
        return 1.0
    octaves = math.log2(max(rate, 1e-3) / RATE_LINE[family])
    return ramp(octaves if act.speed == "fast" else -octaves, -0.35, 0.2)


def read(tracks: Sequence[Track], index: int, act: Act, seconds: float, other: int | None) -> Doing:
    """Compare a track with an act, by the reader of the act's family.

    Args:
        tracks: all tracks of the clip.
        index: of the track that is compared.
        seconds: duration of the clip.
        other: index of the track that `circling` goes around; None if there is none.
    """
    return _READERS[FAMILY[act.action]](tracks, index, act, seconds, other)


def lasting(doing: Doing, track: Track, act: Act) -> Doing:
    """The result of `read`, with a lower `done` if the object is missing in many frames.

    Acts in which an object appears or disappears keep their result. So does `staying still`, because its reader already
    counts missing frames.
    """
    if act.action in ("appearing", "disappearing") or FAMILY[act.action] == "rest":
        return doing
    there = _there(track)
    words = doing.words if there > 0.5 else f"no (there in {track.present.sum()} of {len(track.present)} frames)"
    return replace(doing, done=doing.done * there, words=words)


def _there(track: Track) -> float:
    """1 if the object is in nine of ten frames or more, 0 if it is in half of them or fewer."""
    return ramp(track.share, 0.5, 0.9)


@dataclass(frozen=True)
class _Course:
    """Straight lines fitted to a track's place and size over time, in pixels.

    Attributes:
        x, y: of its centre; size: of its size.
        reach: the larger side of the smallest box around its centres.
        size_range: largest size minus the smallest.
    """

    x: Line
    y: Line
    size: Line
    reach: float
    size_range: float


def _course(track: Track, seconds: float) -> _Course:
    xs, ys = track.centres.T
    present = track.present
    x, y = (line(v, present, seconds) for v in (xs, ys))
    size = line(track.sizes, present, seconds)
    return _Course(x, y, size, float(np.ptp(track.centres[present], 0).max()), float(np.ptp(track.sizes[present])))


def _smooth(rms: float, span: float) -> float:
    """Smoothness in [0, 1] from the root mean square error of the ideal course and the length of the way (`span`), in
    pixels. A longer way may have a larger error."""
    return 1 - ramp(rms, 0.5 + 0.03 * span, 1.2 + 0.16 * span)


def _keeps_size(course: _Course) -> float:
    return 1 - 0.6 * ramp(abs(course.size.change), 2.5, 5.0)


def _keeps_place(course: _Course) -> float:
    return 1 - 0.7 * ramp(course.reach, 3.0, 8.0)


def _says(good: float, rate: str) -> str:
    return f"{'yes' if good > 0.5 else 'no'} ({rate})"


def _translation(tracks: Sequence[Track], index: int, act: Act, seconds: float, other: int | None) -> Doing:
    course = _course(tracks[index], seconds)
    heading = HEADING[act.action]
    along, across = (course.x, course.y) if heading[0] else (course.y, course.x)
    forward = along.change * sum(heading)
    speed = math.hypot(course.x.slope, course.y.slope)
    straight = 1 - ramp(abs(across.change) / max(abs(forward), 1e-6), 0.35, 1.0)
    done = ramp(forward, 2.0, 6.0) * straight * ramp(along.steady, 0.3, 0.9) * _keeps_size(course)
    moved = ramp(math.hypot(course.x.change, course.y.change), 2.0, 6.0)
    smooth = _smooth(math.hypot(course.x.rms, course.y.rms), speed * seconds)
    return Doing(done, moved, smooth, pace(speed, act, "translation"), _says(done, f"{speed:.0f} pixels a second"))


def _oscillation(tracks: Sequence[Track], index: int, act: Act, seconds: float, other: int | None) -> Doing:
    track = tracks[index]
    course, axis = _course(track, seconds), 1 if act.action == "bouncing" else 0
    along = swing(track.centres[:, axis], track.present, seconds)
    across = float(np.ptp(track.centres[track.present, 1 - axis]))
    aside = 1 - ramp(across / max(along.height, 1e-6), 0.4, 1.0)
    form = ramp(along.explained, 0.5, 0.85) * ramp(along.returning, 0.2, 0.5) * ramp(along.height, 3.0, 7.0)
    done = form * aside * _keeps_size(course)
    smooth = _smooth(along.rms, 0.6 * along.height)
    words = _says(done, f"{along.cycles:.1f} times a second")
    return Doing(done, ramp(max(along.height, across), 3.0, 7.0), smooth, pace(along.cycles, act, "oscillation"), words)


def _growth(tracks: Sequence[Track], index: int, act: Act, seconds: float, other: int | None) -> Doing:
    course = _course(tracks[index], seconds)
    change = course.size.change * (1 if act.action == "growing" else -1)
    rate = abs(course.size.slope)
    done = ramp(change, 1.5, 4.0) * ramp(course.size.steady, 0.3, 0.8) * _keeps_place(course)
    smooth = 1 - ramp(course.size.rms, 0.7 + 0.02 * abs(change), 1.3 + 0.2 * abs(change))
    words = _says(done, f"{course.size.slope:+.1f} pixels a second in size")
    return Doing(done, ramp(abs(change), 1.5, 4.0), smooth, pace(rate, act, "growth"), words)


def _orbit(tracks: Sequence[Track], index: int, act: Act, seconds: float, other: int | None) -> Doing:
    path = None if other is None else orbit(tracks[index], tracks[other], seconds)
    if path is None or other is None:
        return Doing(0.0, 0.0, 0.0, pace(0.0, act, "orbit"), "no (nothing to circle)")
    round_ = 1 - ramp(path.spread, 0.2, 0.5)
    centre = 1 - ramp(_course(tracks[other], seconds).reach, 3.0, 10.0)
    form = ramp(path.turned, 0.1, 0.19) * ramp(path.steady, 0.4, 0.9)
    done = form * round_ * centre * (1 - ramp(path.radius, 24, 34))
    smooth = _smooth(path.rms, 2 * math.pi * path.turned * path.radius / 2)
    return Doing(
        done,
        ramp(path.turned, 0.1, 0.19),
        smooth,
        pace(path.turns, act, "orbit"),
        _says(done, f"{path.turns:.2f} turns"),
    )


def _event(tracks: Sequence[Track], index: int, act: Act, seconds: float, other: int | None) -> Doing:
    track = tracks[index]
    course, present = _course(track, seconds), track.present
    calm = 1 - ramp(course.reach, 3.0, 10.0)
    if act.into is not None:
        before = change_of_colour(track, act)
        after = track.colours[present][before:]
        done = ramp(float(after[:, COLOURS.index(act.into)].mean()), 0.3, 0.85) if len(after) else 0.0
        moved = ramp(_largest_change(track.colours[present]), 0.3, 0.8)
        return Doing(done * calm, moved, calm, 1.0, "yes" if done > 0.5 else f"no (stays {act.colour})")
    gone = ~present
    num = max(1, int(gone.sum()))
    at_start, at_end = track.first, len(present) - 1 - track.last
    evidence = at_start if act.action == "appearing" else at_end
    # An object that flickers does neither: all its absence must lie on one side.
    done = ramp(evidence, 0.5, 2.0) * ramp(evidence / num, 0.5, 1.0) * calm
    moved = ramp(max(at_start, at_end), 0.5, 2.0)
    return Doing(done, moved, calm, 1.0, "yes" if done > 0.5 else "no")


def _largest_change(colours: Array) -> float:
    """The largest change of the colour shares (F, colours) from one frame to the next, in [0, 1]."""
    return float((1 - np.minimum(colours[1:], colours[:-1]).sum(1)).max()) if len(colours) > 1 else 0.0


def _rest(tracks: Sequence[Track], index: int, act: Act, seconds: float, other: int | None) -> Doing:
    course = _course(tracks[index], seconds)
    calm = 1 - ramp(course.reach, 2.0, 6.0)
    done = calm * (1 - ramp(course.size_range, 2.5, 5.0)) * _there(tracks[index])
    colour = 1 - ramp(_largest_change(tracks[index].colours[tracks[index].present]), 0.3, 0.8)
    rms = math.hypot(course.x.rms, course.y.rms)
    return Doing(done * colour, calm, 1 - ramp(rms, 0.5, 2.0), 1.0, _says(done, f"within {course.reach:.0f} pixels"))


_READERS: dict[Family, Callable[[Sequence[Track], int, Act, float, int | None], Doing]] = {
    "translation": _translation,
    "oscillation": _oscillation,
    "growth": _growth,
    "orbit": _orbit,
    "event": _event,
    "rest": _rest,
}
