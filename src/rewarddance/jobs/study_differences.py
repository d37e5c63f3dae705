"""Are two ways of judging really different? Their answers to the same pairs, prompt by prompt and seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.statistics import two_way_bootstrap
from rewarddance.reward.measure import rights


class RightByPrompt:
    """Counts along a measurement (`measure_judge(each=...)`): `found` has [pairs right, pairs] of every prompt."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def __call__(self, record: PreferenceRecord, table: NDArray[np.float64]) -> None:
        mine = rights(record, table)
        if mine:
            entry = self.found.setdefault(record.prompt, [0.0, 0.0])
            entry[0] += sum(mine)
            entry[1] += len(mine)


def differences(found: Mapping[str, Any], against: str) -> dict[str, dict[str, Any]]:
    """Accuracy of every variant less that of `against`, on the pairs of each split that both of all seeds answered.

    Returns:
        By variant and split: mean and 95% interval, prompts and seeds resampled. Empty where `against` is missing.
    """
    if against not in found:
        return {}
    out: dict[str, dict[str, Any]] = {}
    for name, entry in found.items():
        if name == against:
            continue
        gaps = {}
        for split in ("id", "ood"):
            sides = [_counts(e["seeds"], split) for e in (entry, found[against])]
            values = None if None in sides else _gap(*sides)  # type: ignore[arg-type]
            if values is not None:
                gaps[split] = two_way_bootstrap(values).as_dict()
        out[name] = gaps
    return out


def _counts(rows: Sequence[Mapping[str, Any]], split: str) -> list[Mapping[str, Sequence[float]]] | None:
    counts = [row.get("right_by_prompt", {}).get(split) for row in rows]
    return None if any(not c for c in counts) else counts  # type: ignore[return-value]


def _gap(
    mine: Sequence[Mapping[str, Sequence[float]]], others: Sequence[Mapping[str, Sequence[float]]]
) -> NDArray[np.float64] | None:
    """(prompts, seeds), its mean the difference of the shares of all pairs that are right; None with none shared."""
    prompts = sorted(set.intersection(*(set(c) for c in (*mine, *others))))
    seeds = min(len(mine), len(others))
    same = [p for p in prompts if len({c[p][1] for c in (*mine, *others)}) == 1]
    if not same:
        return None
    pairs = sum(mine[0][p][1] for p in same)
    gaps = np.array([[mine[s][p][0] - others[s][p][0] for s in range(seeds)] for p in same])
    found: NDArray[np.float64] = gaps * len(same) / pairs
    return found


def differences_table(found: Mapping[str, Mapping[str, Any]], against: str) -> str:
    """A Markdown table, after a blank line; nothing where there is nothing to compare."""
    if not any(found.values()):
        return ""
    lines = [f"variant | ID accuracy less that of {against} | OOD", "--- | --- | ---"]
    for name, gaps in found.items():
        cells = [_cell(gaps.get(split)) for split in ("id", "ood")]
        lines.append(" | ".join([name, *cells]))
    return "\n" + "".join(f"| {line} |\n" for line in lines)


def _cell(gap: Mapping[str, float] | None) -> str:
    return "" if gap is None else f"{gap['mean']:+.3f} [{gap['ci_low']:+.3f}, {gap['ci_high']:+.3f}]"
