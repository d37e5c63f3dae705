"""The exact judge of the moving world. It takes a clip's pixels and a prompt, and gives criteria in [0, 1] with
reasons.

fidelity: the objects that the prompt names do what it says, in its style, on its background, and nothing else is there.
motion: objects that should move do so smoothly and as fast as asked, in any direction.
consistency: objects keep colour, shape and size, nothing flickers, and nothing appears or disappears that the prompt
    does not ask for.
first_frame: the clip begins with the given picture (image-to-video only).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from rewarddance.world.detect import Detection, detect
from rewarddance.world.motion.acts import Doing, kind_agreement, lasting, read
from rewarddance.world.motion.grammar import parse, phrase_act
from rewarddance.world.motion.render import Clip
from rewarddance.world.motion.scene import FAMILY, Act, MotionSpec
from rewarddance.world.motion.tracks import Array, Track, Watched, watch
from rewarddance.world.oracle import MATCHED, named, ramp
from rewarddance.world.render import Image
from rewarddance.world.scene import STYLES

CRITERIA = ("fidelity", "motion", "consistency", "first_frame")
STATIC_WEIGHT = 0.25
"""Weight of an object that should stay still, against 1 for one that should move: a still clip would otherwise get half
of the acts right without effort."""
ACT_SHARE = 0.85
"""Share of fidelity that depends on what the objects do; the rest is for the objects alone."""


@dataclass(frozen=True)
class MotionJudgement:
    """The oracle's verdict on one clip, each criterion in [0, 1]; `first_frame` is None without a given picture."""

    fidelity: float
    motion: float
    consistency: float
    first_frame: float | None
    reasons: tuple[str, ...]

    def __getitem__(self, criterion: str) -> float:
        if criterion not in CRITERIA:
            raise KeyError(criterion)
        value = getattr(self, criterion)
        if value is None:
            raise ValueError("first_frame needs the picture that the clip was made from")
        return float(value)


@lru_cache(4096)
def _parsed(prompt: str) -> MotionSpec:
    return parse(prompt)


def judge(clip: Clip, prompt: str | MotionSpec, fps: float, first: Image | None = None) -> MotionJudgement:
    """Judge a clip against a prompt.

    Args:
        clip: uint8 (F, CANVAS, CANVAS, 3), 2 to `MAX_FRAMES` frames.
        prompt: a sentence of the moving world's grammar, or its meaning.
        fps: frames per second; slow and fast are told apart by what happens in a second.
        first: the picture that the clip had to begin with, uint8 (CANVAS, CANVAS, 3).

    Raises:
        PromptError: the prompt is not of this world.
        ValueError: another shape or type of clip or picture, or a frame rate that is not positive.
    """
    spec = _parsed(prompt) if isinstance(prompt, str) else prompt
    watched = watch(clip, fps)
    pairs = _matched(watched, spec)
    fidelity, reasons = _fidelity(watched, spec, pairs)
    motion, more = _motion(spec, pairs)
    steady, why = _consistency(watched, spec, pairs)
    begins = None if first is None else faithful(clip[0], first)
    if begins is not None:
        why.append(f"first frame: {'kept' if begins > 0.5 else 'changed'}")
    return MotionJudgement(fidelity, motion, steady, begins, tuple(reasons + more + why))


def fidelity(clip: Clip, prompt: str | MotionSpec, fps: float) -> float:
    """Criterion `fidelity` alone, which is what generators are measured by."""
    return judge(clip, prompt, fps).fidelity


@dataclass(frozen=True)
class Match:
    """An asked act and its track: how far the object's kind agrees, and what the track does."""

    act: Act
    track: Track
    kind: float
    doing: Doing


def _matched(watched: Watched, spec: MotionSpec) -> list[Match | None]:
    """The best track for every act; None for an act without one."""
    tracks, acts = watched.tracks, spec.acts
    if not tracks:
        return [None] * len(acts)
    kinds = np.array([[kind_agreement(t, a) for t in tracks] for a in acts])
    doings: list[list[Doing]] = []
    for i, act in enumerate(acts):
        target = kinds[1 - i] if len(acts) == 2 else None
        readings = [read(tracks, j, act, watched.seconds, _other(target, j)) for j in range(len(tracks))]
        doings.append([lasting(doing, track, act) for doing, track in zip(readings, tracks, strict=True)])
    value = np.array(
        [[k * (0.3 + 0.7 * d.done) for k, d in zip(*row, strict=True)] for row in zip(kinds, doings, strict=True)]
    )
    pairs: list[Match | None] = [None] * len(acts)
    for i, j in zip(*(part.tolist() for part in linear_sum_assignment(-value)), strict=True):
        if kinds[i, j] > 0.05:
            pairs[i] = Match(acts[i], tracks[j], float(kinds[i, j]), doings[i][j])
    return pairs


def _other(kinds: Array | None, track: int) -> int | None:
    """The track that is most likely the other object."""
    if kinds is None or len(kinds) < 2:
        return None
    others = kinds.copy()
    others[track] = -1
    return int(others.argmax())


def _weights(spec: MotionSpec) -> Array:
    weights = np.array([STATIC_WEIGHT if a.action == "staying still" else 1.0 for a in spec.acts])
    return np.asarray(weights / weights.sum(), np.float64)


def _extra(watched: Watched, pairs: list[Match | None]) -> float:
    """Number of extra objects, each counted by the share of frames in which it is present."""
    taken = {id(m.track) for m in pairs if m is not None}
    return sum(t.share for t in watched.tracks if id(t) not in taken)


def _fidelity(watched: Watched, spec: MotionSpec, pairs: list[Match | None]) -> tuple[float, list[str]]:
    reasons, extra = [], _extra(watched, pairs)
    kinds = sum(m.kind for m in pairs if m is not None) / (len(spec.acts) + extra)
    done = sum(w * m.doing.done * m.doing.paced for w, m in zip(_weights(spec), pairs, strict=True) if m is not None)
    for act, m in zip(spec.acts, pairs, strict=True):
        there = m is not None and m.kind >= MATCHED
        reasons.append(f"{act.colour} {act.shape}: {'found' if there else 'missing'}")
        if m is not None and there:
            reasons.append(f"{phrase_act(act)[2:]}: {m.doing.words}")
    if extra > 0.1:
        reasons.append(f"extra objects: {extra:.1f}")
    specks = float(np.mean([s.specks for s in watched.frames]))
    style, ground = _style(watched, spec), _ground(watched, spec)
    reasons.append(f"{spec.style} style: {'found' if style > 0.5 else 'missing'}")
    reasons.append(f"{spec.background} background: {'found' if ground > 0.5 else 'missing'}")
    score = kinds * (1 - ACT_SHARE + ACT_SHARE * done) * (1 - 0.5 * ramp(specks, 6, 60))
    return float(score * (0.6 + 0.4 * style) * (0.4 + 0.6 * ground)), reasons


def _style(watched: Watched, spec: MotionSpec) -> float:
    style_index = STYLES.index(spec.style)
    fits = [named(t.styles[t.present].mean(0), style_index) for t in watched.tracks]
    return sum(fits) / len(fits) if fits else 0.0


def _ground(watched: Watched, spec: MotionSpec) -> float:
    """How far the background is the asked one, mean over the frames."""
    right = [1 - ramp(s.background_distance, 30, 110) if s.background == spec.background else 0 for s in watched.frames]
    return sum(right) / len(right)


def _motion(spec: MotionSpec, pairs: list[Match | None]) -> tuple[float, list[str]]:
    values = [0.0 if m is None else m.doing.moved * m.doing.smooth * m.doing.paced for m in pairs]
    reasons = [f"{a.colour} {a.shape}: {_how(m)}" for a, m in zip(spec.acts, pairs, strict=True) if m is not None]
    return float(_weights(spec) @ np.array(values)), reasons


def _how(match: Match) -> str:
    doing = match.doing
    if doing.moved < 0.5:
        return "moves, unasked" if FAMILY[match.act.action] == "rest" else "hardly changes"
    if doing.smooth < 0.5:
        return "jerky"
    return "smooth" if doing.paced > 0.5 else "too fast" if match.act.speed == "slow" else "too slow"


def _consistency(watched: Watched, spec: MotionSpec, pairs: list[Match | None]) -> tuple[float, list[str]]:
    if not watched.tracks:
        return 0.0, ["nothing found"]
    acts = {id(m.track): m.act for m in pairs if m is not None}
    shares = np.array([t.share for t in watched.tracks])
    kept = float(shares @ [identity(t, acts.get(id(t))) for t in watched.tracks] / shares.sum())
    there = min(presence(t, acts.get(id(t))) for t in watched.tracks[: len(spec.acts)])
    alone = 1 - min(1.0, max(0.0, float(shares[len(spec.acts) :].sum())) / len(spec.acts))
    calm = 1 - ramp(watched.flicker, 2.5, 25)
    parts = {"identity": kept, "presence": there, "no ghosts": alone, "calm background": calm}
    return kept * there * alone * calm, [f"{k}: {'kept' if v > 0.5 else 'broken'}" for k, v in parts.items()]


def identity(track: Track, act: Act | None) -> float:
    """How far an object stays itself from frame to frame, in [0, 1]: colour, shape, size and paint.

    `turning` excuses the largest change of colour, once.
    """
    rows = track.present
    if rows.sum() < 2:
        return 1.0
    colours, shapes = track.colours[rows], track.shapes[rows]
    steps = 1 - np.minimum(colours[1:], colours[:-1]).sum(1)
    paint = abs(np.diff(track.paint[rows], axis=0)).mean(1)
    if act is not None and act.action == "turning":
        largest = int(steps.argmax())
        steps[largest] = paint[largest] = 0.0
    usual = int(shapes.mean(0).argmax())
    lost = (shapes.max(1) - shapes[:, usual]).clip(0, None)
    jumps = (abs(np.diff(track.sizes[rows])) - 2.5).clip(0, None)
    # One bad step of eight already lowers the value: these are sums over the clip, not means.
    per_clip = 8 / len(steps)
    colour = 1 - ramp(float(steps.sum()) * per_clip, 0.4, 3.0)
    shape = 1 - ramp(float(lost.sum()) * per_clip, 0.15, 1.0)
    size = 1 - ramp(float(jumps.sum()) * per_clip, 1.0, 12.0)
    return colour * shape * size * (1 - ramp(float(paint.mean()), 14, 60))


def presence(track: Track, act: Act | None) -> float:
    """1 if an object is there in every frame in which it should be; 0 if it is missing in 60% of these frames or more.

    `appearing` and `disappearing` excuse its absence at the start and at the end. An object that nothing asked for is
    excused in the same way if it comes late or leaves early.
    """
    frames = np.arange(len(track.present))
    due = np.ones(len(frames), np.bool_)
    if act is None or act.action == "appearing":
        due &= frames >= track.first
    if act is None or act.action == "disappearing":
        due &= frames <= track.last
    return 1 - ramp(float((due & ~track.present).sum() / due.sum()), 0.0, 0.6)


def faithful(frame: Image, first: Image) -> float:
    """How far a clip's first frame is the given picture, in [0, 1]: half by pixels, half by the objects in them.

    Pixels count by peak signal-to-noise ratio (nothing at 14 dB, all at 26 dB), objects by kind, place and size.
    """
    error = float(np.mean((frame.astype(np.float32) - first.astype(np.float32)) ** 2))
    psnr = 10 * math.log10(255**2 / max(error, 1e-6))
    a, b = detect(frame).objects, detect(first).objects
    if not a or not b:
        return 0.5 * ramp(psnr, 14, 26) + 0.5 * float(not a and not b)
    table = np.array([[_same(x, y) for y in b] for x in a])
    rows, columns = linear_sum_assignment(-table)
    same = float(table[rows, columns].sum()) / max(len(a), len(b))
    return 0.5 * ramp(psnr, 14, 26) + 0.5 * same


def _same(a: Detection, b: Detection) -> float:
    """How far two detections are one object: in [0, 1], 0 for another kind."""
    colour = float(np.minimum(a.colour_share, b.colour_share).sum())
    near = 1 - ramp(math.hypot(a.x - b.x, a.y - b.y), 1.0, 8.0)
    return colour * (a.shape == b.shape) * near * (1 - ramp(abs(a.size - b.size), 1.0, 6.0))
