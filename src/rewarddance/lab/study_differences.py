"""Differences of accuracy between variants of judges on the same pairs, by prompt and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.statistics import two_way_bootstrap
from rewarddance.evaluate.judge import Refused, right_pairs


class RightByPrompt:
    """Counts during `measure_judge(each=...)`: `counts` has [pairs right, pairs] of every prompt."""

    def __init__(self) -> None:
        self.counts: dict[str, list[float]] = {}

    def __call__(self, record: PreferenceRecord, table: NDArray[np.float64], refused: Refused) -> None:
        right = right_pairs(record, table)
        if right:
            entry = self.counts.setdefault(record.prompt, [0.0, 0.0])
            entry[0] += sum(right)
            entry[1] += len(right)


def differences(variants: Mapping[str, Any], against: str) -> dict[str, dict[str, Any]]:
    """Accuracy of every variant minus that of `against`, on pairs of each split that both answered with all seeds.

    Returns:
        By variant and split: mean and 95% interval, prompts and seeds resampled. Empty where `against` is missing.
    """
    if against not in variants:
        return {}
    out: dict[str, dict[str, Any]] = {}
    for name, entry in variants.items():
        if name == against:
            continue
        gaps = {}
        for split in ("id", "ood"):
            sides = [_counts(e["seeds"], split) for e in (entry, variants[against])]
            values = None if None in sides else _gap(*sides)  # type: ignore[arg-type]
            if values is not None:
                gaps[split] = two_way_bootstrap(values).as_dict()
        out[name] = gaps
    return out


def _counts(rows: Sequence[Mapping[str, Any]], split: str) -> list[Mapping[str, Sequence[float]]] | None:
    counts = [row.get("right_by_prompt", {}).get(split) for row in rows]
    return None if any(not c for c in counts) else counts  # type: ignore[return-value]


def _gap(
    counts: Sequence[Mapping[str, Sequence[float]]], others: Sequence[Mapping[str, Sequence[float]]]
) -> NDArray[np.float64] | None:
    """(prompts, seeds), whose mean is the difference of the shares of right pairs; None without shared prompts."""
    shared = sorted(set.intersection(*(set(c) for c in (*counts, *others))))
    seeds = min(len(counts), len(others))
    prompts = [p for p in shared if len({c[p][1] for c in (*counts, *others)}) == 1]
    if not prompts:
        return None
    pairs = sum(counts[0][p][1] for p in prompts)
    gaps = np.array([[counts[s][p][0] - others[s][p][0] for s in range(seeds)] for p in prompts])
    weighted: NDArray[np.float64] = gaps * len(prompts) / pairs
    return weighted
