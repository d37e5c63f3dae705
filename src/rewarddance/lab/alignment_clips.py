"""Good-same-bad, criteria, motion and alignment scores: what `study alignment` measures on clips besides the oracle's
value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from rewarddance.core.dynamics import MOVES
from rewarddance.core.statistics import bootstrap, students_interval
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Rate
from rewarddance.evaluate.clips import dynamics, verdicts
from rewarddance.evaluate.generator import Array, Samples

VERDICTS = {"oracle": "the oracle", "raters": "simulated raters"}
"""Sources of the values that compare two clips: the oracle's value, and simulated raters' mean score of the whole clip,
0 to 2."""
MEASURES = {
    "alignment": "video-text alignment by simulated raters, 0 to 2",
    "degree": "dynamic degree",
    "fidelity": "fidelity",
    "motion": "motion",
    "consistency": "consistency",
    "first_frame": "first frame",
}
"""Values of clips that are shown before and after: raters' mean score of fidelity, `dynamic_degree`, and the oracle's
criteria."""
CLIP_VERSION = 3
"""Version of `clip_values`. Clips whose values are of another version are measured again. 3: the oracle counts missing
frames for `turning` too."""


def clip_values(samples: Samples, criteria: Mapping[str, Array], rate: Rate | None, raters: str) -> dict[str, Any]:
    """Values of every clip, (prompts, noises) as lists, by `VERDICTS` and `MEASURES`.

    Args:
        criteria: of the clips (`criteria_of`).
        rate: simulated raters (`Task.rate`); without them there are no raters' scores.
        raters: what the seed of the raters' noise comes from. Two sides of a comparison need different
            seeds, because equal noise would cancel in the comparison. The raters themselves are the same.
    """
    values = {name: v for name, v in criteria.items() if name in MEASURES}
    values |= {"oracle": criteria["overall"], "degree": dynamics(samples)}
    if rate is not None:
        for name, criterion in (("raters", "overall"), ("alignment", "fidelity")):
            values[name] = rate(criteria[criterion], seed_of(0, name, raters)).mean(2)
    return {name: v.tolist() for name, v in values.items()}


def compare_clip_values(
    runs: Sequence[Mapping[str, Any]], bases: Sequence[Mapping[str, Any]], widths: Mapping[str, float]
) -> dict[str, Any]:
    """Clips of several seeds against others of the same prompts and noises.

    Args:
        runs, bases: `clip_values` of every seed, and `frechet`, the set's `clip_distance`.
        widths: largest difference that counts as "same", by `VERDICTS`.

    Returns:
        Each of `VERDICTS`: good, same and bad, shares of all pairs; gsb, (G - B) / (G + S + B), with Student's interval
            over seeds and a bootstrap over prompts.
        moving: the shares of moving clips `before` and `after`, and the change with the same two intervals.
        measures: each of `MEASURES` `before` and `after` with a bootstrap over prompts, and the change as above.
        frechet: before and after, means over seeds, and the change over seeds.
    """
    figures: dict[str, Any] = {}
    for name, width in widths.items():
        signs = [verdicts(np.array(r[name]), np.array(b[name]), width) for r, b in zip(runs, bases, strict=True)]
        shares = {k: float(np.mean(np.stack(signs) == v)) for k, v in (("good", 1), ("same", 0), ("bad", -1))}
        figures[name] = {**shares, "gsb": _intervals(signs)}
    after, before = ([_moving(values) for values in side] for side in (runs, bases))
    figures["moving"] = {
        "after": float(np.mean(np.stack(after))),
        "before": float(np.mean(np.stack(before))),
        "change": _intervals([a - b for a, b in zip(after, before, strict=True)]),
    }
    figures["measures"] = {n: _before_and_after(runs, bases, n) for n in MEASURES if n in runs[0] and n in bases[0]}
    if all("frechet" in values for values in (*runs, *bases)):
        distances = [(float(r["frechet"]), float(b["frechet"])) for r, b in zip(runs, bases, strict=True)]
        figures["frechet"] = {
            "before": fmean(b for _, b in distances),
            "after": fmean(a for a, _ in distances),
            "change": {"over_seeds": students_interval([a - b for a, b in distances])},
        }
    return figures


def _before_and_after(
    runs: Sequence[Mapping[str, Any]], bases: Sequence[Mapping[str, Any]], name: str
) -> dict[str, Any]:
    after, before = ([np.array(values[name], np.float64) for values in side] for side in (runs, bases))
    return {
        "before": bootstrap(np.concatenate(before, 1)).as_dict(),
        "after": bootstrap(np.concatenate(after, 1)).as_dict(),
        "change": _intervals([a - b for a, b in zip(after, before, strict=True)]),
    }


def _moving(values: Mapping[str, Any]) -> Array:
    return (np.array(values["degree"]) > MOVES).astype(np.float64)


def _intervals(values: Sequence[Array]) -> dict[str, Any]:
    return {
        "over_seeds": students_interval([float(v.mean()) for v in values]),
        "over_prompts": bootstrap(np.concatenate(values, 1)).as_dict(),
    }
