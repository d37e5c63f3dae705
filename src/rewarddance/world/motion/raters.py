"""Simulated raters of clips: their weights of criteria, pairwise choices, and alignment scores from 0 to 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewarddance.core.statistics import Interval, bootstrap
from rewarddance.core.streams import stream
from rewarddance.world.motion.oracle import MotionJudgement
from rewarddance.world.raters import Rater

OVERALL_WEIGHTS: dict[str, float] = {"fidelity": 0.5, "motion": 0.3, "consistency": 0.2}
"""Weights of the criteria for text-to-video."""
FIRST_FRAME_WEIGHTS: dict[str, float] = {"fidelity": 0.4, "motion": 0.25, "consistency": 0.15, "first_frame": 0.2}
"""Weights of the criteria for image-to-video."""


def utility(judgement: MotionJudgement, criterion: str) -> float:
    """A rater's value of a clip under a criterion (`overall` is the weighted sum), in [0, 1]."""
    if criterion == "overall":
        weights = OVERALL_WEIGHTS if judgement.first_frame is None else FIRST_FRAME_WEIGHTS
        return sum(w * judgement[c] for c, w in weights.items())
    return judgement[criterion]


def alignment_score(rater: Rater, fidelity: float, rng: np.random.Generator) -> int:
    """A rater's score of one clip: 0 if it shows something else, 1 for parts of the prompt, 2 for all of it."""
    return int(np.clip(round(2 * fidelity + rater.leniency / 2 + rng.normal(0, 0.2)), 0, 2))


def alignment(
    fidelities: Sequence[float] | NDArray[np.float64], raters: Sequence[Rater], seed: int = 0
) -> tuple[Interval, NDArray[np.int64]]:
    """Video-text alignment on the 0 to 2 scale, as simulated raters give it.

    Args:
        fidelities: oracle fidelity of one clip a prompt, (N,), or of several, (N, K).
        raters: everybody scores every clip.

    Returns:
        The mean with its 95% interval over prompts, and all scores (N, K, raters).
    """
    values = np.asarray(fidelities, np.float64).reshape(len(fidelities), -1)
    scores = np.zeros((*values.shape, len(raters)), np.int64)
    for i, row in enumerate(values):
        rng = stream(seed, "alignment", i)
        scores[i] = [[alignment_score(r, float(f), rng) for r in raters] for f in row]
    return bootstrap(scores), scores
