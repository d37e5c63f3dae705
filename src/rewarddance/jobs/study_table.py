"""Figures of judges as a Markdown table: one row a variant or size."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
QUALITY = {
    "accuracy": "accuracy",
    "accuracy_generator": "generator",
    "accuracy_rendered": "rendered",
    "spearman": "Spearman",
}
COST = {
    "train_seconds": ("training, s", 1.0),
    "pretrain_seconds": ("pretraining, s", 1.0),
    "peak_memory_mib": ("training's peak, MiB", 1.0),
    "latency_p50": ("latency p50, ms", 1e3),
    "latency_p95": ("p95, ms", 1e3),
    "comparisons_per_second": ("comparisons/s", 1.0),
    "pictures_per_second": ("pictures/s", 1.0),
}
"""Figures of `study_judges.measured_judge`: title, and what they are multiplied by."""


def table(found: Mapping[str, Any]) -> str:
    """Of several seeds the mean with the smallest and largest, of one its 95% interval; empty where not measured."""
    every = [row for entry in found.values() for row in entry["seeds"]]
    costs = {k: v for k, v in COST.items() if any(row.get(k) is not None for row in every)}
    head = ["variant", "parameters", *(f"{s.upper()} {title}" for s in ("id", "ood") for title in QUALITY.values())]
    lines = [[*head, *(title for title, _ in costs.values())], ["---"] * (len(head) + len(costs))]
    for name, entry in found.items():
        rows = entry["seeds"]
        quality = [_quality(rows, split, figure) for split in ("id", "ood") for figure in QUALITY]
        cost = [_median(rows, key, scale) for key, (_, scale) in costs.items()]
        lines.append([name, f"{entry['parameters'] / 1e6:.1f}M", *quality, *cost])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _quality(rows: Rows, split: str, figure: str) -> str:
    values = [r[split][figure] for r in rows if r.get(split, {}).get(figure) is not None]
    if not values:
        return ""
    if len(values) > 1:
        return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
    interval = rows[0].get(split, {}).get(f"{figure}_ci") if len(rows) == 1 else None
    return f"{values[0]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _median(rows: Rows, key: str, scale: float) -> str:
    values = [r[key] * scale for r in rows if r.get(key) is not None]
    return f"{statistics.median(values):.0f}" if values else ""
