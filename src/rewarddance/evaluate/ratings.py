"""Rank correlation between predicted and given ratings, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarddance.core.statistics import bootstrap_statistic, grouped_interval
from rewarddance.evaluate.judge import spearman

Array = NDArray[np.float64]
NUM_RESAMPLES = 500


def measure_ratings(
    prompts: Sequence[str], predicted: Sequence[Array], given: Sequence[Array], columns: Sequence[str]
) -> dict[str, Any]:
    """Spearman correlations of every column.

    Args:
        prompts: of N groups of pictures.
        predicted, given: (pictures, columns) of every group; given ratings are NaN where there are none.

    Returns:
        rating_spearman: of the last column, over the pictures of all prompts; rating_spearman_ci: its 95% interval over
        prompts; rating_spearman_within, ..._ci: mean over the groups whose ratings differ; by_criterion: correlation
        and interval by column; num_pictures. A column without ratings is None.
    """
    by_column = {name: _pooled(prompts, predicted, given, k) for k, name in enumerate(columns)}
    pooled = by_column[columns[-1]]
    within = [
        (prompt, spearman(p[known, -1], g[known, -1]))
        for prompt, p, g in zip(prompts, predicted, given, strict=True)
        if (known := np.isfinite(g[:, -1])).sum() >= 3 and np.ptp(g[known, -1]) > 0
    ]
    return {
        "rating_spearman": None if pooled is None else pooled["mean"],
        "rating_spearman_ci": None if pooled is None else [pooled["ci_low"], pooled["ci_high"]],
        "rating_spearman_within": float(np.mean([v for _, v in within])) if within else None,
        "rating_spearman_within_ci": grouped_interval(within) if within else None,
        "by_criterion": by_column,
        "num_pictures": int(sum(len(g) for g in given)),
    }


def _pooled(
    prompts: Sequence[str], predicted: Sequence[Array], given: Sequence[Array], column: int
) -> Mapping[str, float] | None:
    pairs: dict[str, list[Array]] = {}
    for prompt, p, g in zip(prompts, predicted, given, strict=True):
        known = np.isfinite(g[:, column])
        if known.any():
            pairs.setdefault(prompt, []).append(np.stack([p[known, column], g[known, column]]))
    if len(pairs) < 2:
        return None
    units = [np.concatenate(own, 1) for own in pairs.values()]

    def statistic(rows: NDArray[np.int64]) -> float:
        both = np.concatenate([units[int(r)] for r in rows], 1)
        return spearman(both[0], both[1])

    return bootstrap_statistic(statistic, len(units), num=NUM_RESAMPLES).as_dict()
