"""`rewarddance compare`: the evaluations of two runs side by side. Reads the JSON files in the run folders only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rewarddance.core.errors import RunError
from rewarddance.core.runs import RunFolder
from rewarddance.core.statistics import Interval, paired_bootstrap

FILES = tuple(f"evaluation{part}.json" for part in ("", "_development", "_second", "_prompts", "_people", "_metrics"))
"""The files that `rewarddance evaluate` writes into a run."""
SETTINGS = ("prompts", "noises", "num_steps", "guidance", "seed", "reference", "judge")
"""Keys on which the figures of an evaluation depend."""
INTERVAL = {"mean", "ci_low", "ci_high"}


def compare_runs(first: Path, second: Path) -> str:
    """A table of the figures that both runs have, and paired differences if both hold values of single prompts.

    Raises:
        RunError: not a run folder, or no evaluation that both runs have.
    """
    for run in (first, second):
        RunFolder(run).read()
    both = [(name, _read(first / name), _read(second / name)) for name in FILES]
    shared = [(name, a, b) for name, a, b in both if a is not None and b is not None]
    if not shared:
        raise RunError(f"{first} and {second}: have no evaluation in common; run `rewarddance evaluate` on both")
    parts = [_section(name, a, b, (str(first), str(second))) for name, a, b in shared]
    return "\n\n".join(parts)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise RunError(f"{path}: not JSON ({error})") from None


def _section(name: str, a: Mapping[str, Any], b: Mapping[str, Any], runs: tuple[str, str]) -> str:
    """One evaluation: the settings that differ, its figures, its paired differences."""
    lines = [name]
    different = [k for k in SETTINGS if a.get(k) != b.get(k)]
    texts = [side.get("per_prompt", {}).get("prompts") for side in (a, b)]
    if texts[0] != texts[1] and "prompts" not in different:
        different.insert(0, "other prompts")
    if different:
        lines.append(f"the two were measured differently ({', '.join(different)}): compare with care")
    rows_a, rows_b = (_figures({k: v for k, v in side.items() if k != "per_prompt"}) for side in (a, b))
    rows = [("figure", *runs)] + [(key, rows_a[key], rows_b[key]) for key in rows_a if key in rows_b]
    lines += _aligned(rows)
    differences = paired_differences(a, b)
    if differences:
        lines += ["", f"paired over prompts, {runs[1]} less {runs[0]}, with 95% intervals"]
        lines += _aligned([(key, str(interval), _sign(interval)) for key, interval in differences.items()])
    return "\n".join(lines)


def _sign(difference: Interval) -> str:
    """Whether the sign is certain; whether more is better depends on the figure."""
    return {"better": "more", "worse": "less"}.get(difference.verdict, difference.verdict)


def paired_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Interval]:
    """Mean of b minus a over the prompts for which both have a value, by name; empty if the prompts differ."""
    first, second = a.get("per_prompt", {}), b.get("per_prompt", {})
    if not first or first.get("prompts") != second.get("prompts"):
        return {}
    out = {}
    for key in (k for k in first if k != "prompts" and k in second):
        x, y = (np.array(side[key], np.float64) for side in (first, second))  # None becomes NaN
        known = np.isfinite(x) & np.isfinite(y)
        if known.any():
            out[key] = paired_bootstrap(y[known], x[known])
    return out


def _figures(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested figures as text by dotted name; a mean with its interval is one figure."""
    rows: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if value.keys() >= INTERVAL:
                rows[name] = "{mean:.4g} [{ci_low:.4g}, {ci_high:.4g}]".format(**value)
                value = {k: v for k, v in value.items() if k not in INTERVAL}
            rows |= _figures(value, f"{name}.")
        elif isinstance(value, float):
            rows[name] = f"{value:.4g}"
        elif isinstance(value, str | int):
            rows[name] = str(value)
    return rows


def _aligned(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
