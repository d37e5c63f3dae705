"""Simulated raters: pairwise choices with Bradley-Terry noise, ties, bias and inattention, and 5-point ratings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewarddance.core.streams import stream
from rewarddance.world.oracle import Judgement

OVERALL_WEIGHTS: dict[str, float] = {"fidelity": 0.40, "style": 0.25, "composition": 0.25, "novelty": 0.10}
"""Weights of the criteria in the overall judgement."""


@dataclass(frozen=True)
class Rater:
    """One simulated person.

    Attributes:
        temperature: utilities (0..1) are divided by it before the logistic; choices at a small one are less random.
        side_bias: added to the log-odds of the picture that is shown first.
        tie_width: utilities closer than this are called a tie with probability one half.
        inattention: share of answers that are coin flips.
        leniency: added to ratings, in points.
    """

    name: str
    temperature: float = 0.08
    side_bias: float = 0.0
    tie_width: float = 0.04
    inattention: float = 0.04
    leniency: float = 0.0

    def choose(self, first: float, second: float, rng: np.random.Generator) -> float:
        """1 if the first picture is chosen, 0 if the second, 0.5 for a tie."""
        if rng.random() < self.inattention:
            return float(rng.integers(2))
        if abs(first - second) < self.tie_width and rng.random() < 0.5:
            return 0.5
        odds = (first - second) / self.temperature + self.side_bias
        return float(rng.random() < 1 / (1 + np.exp(-odds)))

    def rate(self, utility: float, rng: np.random.Generator) -> int:
        """A rating from 1 to 5."""
        return int(np.clip(round(1 + 4 * utility + self.leniency + rng.normal(0, 0.35)), 1, 5))


def crowd(num_raters: int = 8, seed: int = 0) -> tuple[Rater, ...]:
    """Raters who differ in temperature, bias, inattention and leniency."""
    rng = stream(seed, "raters")
    return tuple(
        Rater(
            f"rater-{i}",
            temperature=float(rng.uniform(0.05, 0.12)),
            side_bias=float(rng.normal(0, 0.2)),
            inattention=float(rng.uniform(0.0, 0.08)),
            leniency=float(rng.normal(0, 0.3)),
        )
        for i in range(num_raters)
    )


def utility(judgement: Judgement, criterion: str) -> float:
    """How much a rater likes a picture under a criterion (`overall` is the weighted sum), in [0, 1]."""
    if criterion == "overall":
        return sum(w * judgement[c] for c, w in OVERALL_WEIGHTS.items())
    return judgement[criterion]
