"""The exact judge of the embedded world: pixels and prompt in, four criteria in [0, 1] and the reasons out.

P fidelity: the picture holds what the prompt asks for, and nothing else. S style: the style is the requested one.
C composition: margins, overlap, balance, spacing. N novelty: distance of the layout from training layouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from rewarddance.core.streams import stream
from rewarddance.world.detect import Detection, Seen, detect
from rewarddance.world.grammar import parse, phrase_term
from rewarddance.world.render import Image, render
from rewarddance.world.sampling import sample_pair
from rewarddance.world.scene import BACKGROUNDS, CANVAS, COLOURS, SHAPES, STYLES, Spec, Term, along, gap

MATCHED = 0.4
"""Least agreement of a detected object with a requested one for the two to count as the same object."""
CRITERIA = ("fidelity", "style", "composition", "novelty")


@dataclass(frozen=True)
class Judgement:
    """The oracle's verdict on one picture, each criterion in [0, 1]."""

    fidelity: float
    style: float
    composition: float
    novelty: float
    reasons: tuple[str, ...]

    def __getitem__(self, criterion: str) -> float:
        if criterion not in CRITERIA:
            raise KeyError(criterion)
        return float(getattr(self, criterion))


def ramp(x: float, low: float, high: float) -> float:
    return float(min(1.0, max(0.0, (x - low) / (high - low))))


def named(fits: NDArray[np.float32], index: int) -> float:
    """How sure the name at `index` is, in [0, 1]: 1 where its template fits well and no other fits better."""
    values = fits.tolist()
    fit = values.pop(index)
    return ramp(fit, 0.55, 0.82) * ramp(fit - max(values), -0.12, 0.0)


def agreement(detection: Detection, term: Term) -> float:
    """How far a detected object is what the term asks for, in [0, 1]."""
    colour = ramp(float(detection.colour_share[COLOURS.index(term.colour)]), 0.3, 0.85)
    shape = named(detection.shape_fit, SHAPES.index(term.shape))
    return both_right(colour, shape, 1.0 if detection.large == term.large else 0.0)


def both_right(colour: float, shape: float, size: float) -> float:
    """Agreement of an object from that of its colour, shape and size, each in [0, 1]; low if one of them is wrong."""
    return (0.15 * colour + 0.15 * shape + 0.7 * colour * shape) * (0.6 + 0.4 * size)


def _arrangement_holds(spec: Spec, objects: list[Standing]) -> float:
    if spec.arrangement == "crowd":
        return 1.0
    if len(objects) < spec.num_objects:
        return 0.0
    xs, ys = (np.sort([getattr(o, axis) for o in objects]) for axis in "xy")
    if spec.arrangement == "stack":
        xs, ys = ys, xs
    level = 1 - ramp(float(np.ptp(ys)), 4.0, 9.0)
    gaps = np.diff(xs)
    if spec.arrangement == "pair":
        return level * (1 - ramp(float(gaps[0]), 20.0, 27.0))
    return level * (1 - ramp(float(np.ptp(gaps)), 6.0, 12.0))


class Standing(Protocol):
    """An object's centre in pixels, which decides relations and arrangements."""

    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...


def fulfilment(
    objects: Sequence[Standing], table: NDArray[np.float64], spec: Spec, specks: float, ground: float
) -> tuple[float, list[str]]:
    """The definition of fidelity, for the oracle's detections and for the reader's.

    Args:
        objects: the detected objects.
        table: agreement of each with each requested object, (detected, requested), in [0, 1].
        specks: pixels of paint that belong to no object.
        ground: agreement of the background with the requested one, in [0, 1].

    Returns:
        The score in [0, 1] and its reasons.
    """
    terms = spec.instances()
    if not objects:
        return 0.0, ["nothing found"]
    rows, columns = linear_sum_assignment(-table)
    value = table[rows, columns]
    reasons = []
    placed: dict[int, Standing] = {}
    for r, c, v in zip(rows, columns, value, strict=True):
        if v >= MATCHED:
            placed[int(c)] = objects[int(r)]
    for i, term in enumerate(terms):
        reasons.append(f"{phrase_term(term)[2:]}: {'found' if i in placed else 'missing'}")
    extra = len(objects) - len(placed)
    if extra > 0:
        reasons.append(f"extra objects: {extra}")
    score = float(value.sum()) / max(len(terms), len(objects))
    score *= 1 - 0.5 * ramp(specks, 6, 60)
    if spec.relation is not None:
        held = 0.0
        if len(placed) == 2:
            a, b = placed[0], placed[1]
            held = ramp(along(spec.relation, b.x - a.x, b.y - a.y), 0.0, 5.0)
        score *= 0.35 + 0.65 * held
        reasons.append(f"{spec.relation}: {'holds' if held > 0.5 else 'does not hold'}")
    if spec.arrangement is not None:
        held = _arrangement_holds(spec, list(placed.values()))
        score *= 0.35 + 0.65 * held
        reasons.append(f"{spec.arrangement}: {'holds' if held > 0.5 else 'does not hold'}")
    score *= 0.4 + 0.6 * ground
    reasons.append(f"{spec.background} background: {'found' if ground > 0.5 else 'missing'}")
    return score, reasons


def _fidelity(seen: Seen, spec: Spec) -> tuple[float, list[str]]:
    table = np.array([[agreement(o, t) for t in spec.instances()] for o in seen.objects])
    ground = 1 - ramp(seen.background_distance, 30, 110) if seen.background == spec.background else 0.0
    return fulfilment(seen.objects, table, spec, seen.specks, ground)


def _style(seen: Seen, spec: Spec) -> float:
    if not seen.objects:
        return 0.0
    index = STYLES.index(spec.style)
    return sum(named(o.style_fit, index) for o in seen.objects) / len(seen.objects)


RULES = ("margins", "overlap", "balance", "spacing")
"""Of composition: distance to the border, no overlap, centred mass, even spacing."""


def _composition(seen: Seen) -> tuple[float, ...]:
    """How far each of the `RULES` is kept, in [0, 1]. Their mean is the criterion."""
    if not seen.objects:
        return (0.0,) * len(RULES)
    margins = [min(*o.box[:2], CANVAS - o.box[2], CANVAS - o.box[3]) for o in seen.objects]
    clear = sum(ramp(m, 0.0, 3.0) for m in margins) / len(margins)
    down, across = seen.coverage.sum(1), seen.coverage.sum(0)
    paint = max(float(down.sum()), 1e-6)
    balance = 1 - ramp(math.hypot(float(down @ _TICKS) / paint, float(across @ _TICKS) / paint), 2.0, 20.0)
    if len(seen.objects) == 1:
        return clear, 1.0, balance, 1.0
    nearest = [min(gap(a, b) for b in seen.objects if b is not a) for a in seen.objects]
    overlap = sum(ramp(g, -1.0, 2.0) for g in nearest) / len(nearest)
    spacing = 1 - ramp(max(nearest) - min(nearest), 2.0, 18.0)
    return clear, overlap, balance, spacing


_TICKS = np.arange(CANVAS, dtype=np.float32) - (CANVAS - 1) / 2


def _layout(seen: Seen) -> NDArray[np.float64]:
    """Objects of every colour in the nine cells of the picture, then shapes, style and background: (71,)."""
    out = np.zeros((len(COLOURS), 9))
    shapes, styles = np.zeros(len(SHAPES)), np.zeros(len(STYLES))
    for o in seen.objects:
        cell = 3 * min(2, int(3 * o.y / CANVAS)) + min(2, int(3 * o.x / CANVAS))
        out[COLOURS.index(o.colour), cell] += 1  # type: ignore[arg-type]
        shapes[SHAPES.index(o.shape)] += 1  # type: ignore[arg-type]
        styles[STYLES.index(o.style)] += 1 / max(1, len(seen.objects))  # type: ignore[arg-type]
    ground = np.zeros(len(BACKGROUNDS))
    ground[BACKGROUNDS.index(seen.background)] = 1  # type: ignore[arg-type]
    return np.concatenate([out.ravel(), shapes, styles, ground])


@cache
def _familiar() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Layouts of 512 training scenes, (71, 512), and their sums, (512,)."""
    rng = stream(0, "novelty")
    layouts = np.stack([_layout(detect(render(sample_pair(rng)[1]))) for _ in range(512)], 1)
    return layouts, layouts.sum(0)


def _novelty(seen: Seen) -> float:
    """1 - exp(-d / 4) with d the city-block distance to the nearest of the training layouts."""
    layout, (familiar, sums) = _layout(seen), _familiar()
    (nonzero,) = np.nonzero(layout)
    shared = np.minimum(familiar[nonzero], layout[nonzero, None]).sum(0)
    distance = sums + layout.sum() - 2 * shared  # |a - b| = a + b - 2 min(a, b)
    return 1 - math.exp(-max(0.0, float(distance.min())) / 4)


@lru_cache(4096)
def _parsed(prompt: str) -> Spec:
    return parse(prompt)


def judge(image: Image, prompt: str | Spec) -> Judgement:
    """Judge a picture against a prompt.

    Args:
        image: uint8 (CANVAS, CANVAS, 3).
        prompt: a sentence of the world's grammar, or its meaning.

    Raises:
        PromptError: the prompt is not of this world.
    """
    spec = _parsed(prompt) if isinstance(prompt, str) else prompt
    seen = detect(image)
    fidelity, reasons = _fidelity(seen, spec)
    style = _style(seen, spec)
    reasons.append(f"{spec.style} style: {'found' if style > 0.5 else 'missing'}")
    rules = _composition(seen)
    reasons += [f"{name}: {'kept' if kept > 0.5 else 'broken'}" for name, kept in zip(RULES, rules, strict=True)]
    return Judgement(fidelity, style, sum(rules) / len(rules), _novelty(seen), tuple(reasons))


def fidelity(image: Image, prompt: str | Spec) -> float:
    """Criterion P alone, by which generators are measured. It is cheaper than `judge`."""
    spec = _parsed(prompt) if isinstance(prompt, str) else prompt
    return _fidelity(detect(image), spec)[0]
