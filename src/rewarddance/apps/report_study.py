"""What a report says of a study: tables and figures from its `study.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from rewarddance.apps.figures import dots, intervals
from rewarddance.jobs.study_table import COST

Figures = list[tuple[str, str | None]]
SPLITS = {"id": "held-out prompts", "ood": "out of distribution"}
MEASURES = {
    "accuracy_generator": "the generator's own pairs",
    "accuracy_rendered": "rendered and corrupted pairs",
    "spearman": "rank correlation within a prompt",
}
"""Of `measure_judge`; data without exact values has `accuracy` alone."""


@dataclass(frozen=True)
class Table:
    """A titled table of texts."""

    title: str
    head: list[str]
    rows: list[list[str]]


def study_content(study: Mapping[str, Any]) -> tuple[str, list[Table], Figures]:
    """Title, tables and figures of a study of judges (paradigms or sizes), of alignment, or of a cross-validation."""
    if "folds" in study:
        return _folds(study)
    if "arms" in study:
        return _alignment(study)
    kind = "variants" if "variants" in study else "sizes"
    return (
        f"Study of {'paradigms' if kind == 'variants' else kind}",
        _judge_tables(study, kind),
        _judge_figures(study, kind),
    )


def _measures(entries: Mapping[str, Any]) -> dict[str, str]:
    rows = [row for e in entries.values() for row in e["seeds"]]
    known = {k: v for k, v in MEASURES.items() if any(_value(r, "id", k) is not None for r in rows)}
    return known or {"accuracy": "held-out choices"}


def _value(row: Mapping[str, Any], split: str, key: str) -> float | None:
    found: float | None = row.get(split, {}).get(key)
    return found


def _values(entry: Mapping[str, Any], split: str, key: str) -> list[float]:
    found = [_value(row, split, key) for row in entry["seeds"]]
    return [v for v in found if v is not None]


def _judge_tables(study: Mapping[str, Any], kind: str) -> list[Table]:
    entries, measures = study[kind], _measures(study[kind])
    columns = [(split, key) for split in SPLITS for key in measures]
    head = ["", "parameters", *(f"{measures[k]}, {SPLITS[s]}" for s, k in columns)]
    rows = []
    for name, entry in entries.items():
        cells = [_spread(_values(entry, s, k)) + _own_interval(entry, s, k) for s, k in columns]
        rows.append([name, f"{entry['parameters'] / 1e6:.1f}M", *cells])
    left_out = {**study.get("skipped", {}), **study.get("unfinished", {})}
    rows += [[name, reason, *[""] * (len(head) - 2)] for name, reason in left_out.items()]
    several = any(len(e["seeds"]) > 1 for e in entries.values())
    title = "Mean of the seeds (smallest to largest)" if several else "One seed [95% interval over prompts]"
    return [Table(title, head, rows), *_gap_table(study), *_cost_table(entries)]


def _own_interval(entry: Mapping[str, Any], split: str, key: str) -> str:
    """Of a single seed, over its prompts."""
    found = entry["seeds"][0].get(split, {}).get(f"{key}_ci") if len(entry["seeds"]) == 1 else None
    return f" [{found[0]:.3f}, {found[1]:.3f}]" if found else ""


def _cost_table(entries: Mapping[str, Any]) -> list[Table]:
    costs = {k: v for k, v in COST.items() if any(r.get(k) is not None for e in entries.values() for r in e["seeds"])}
    rows = []
    for name, entry in entries.items():
        found = {k: [r[k] * scale for r in entry["seeds"] if r.get(k) is not None] for k, (_, scale) in costs.items()}
        rows.append([name, *(f"{median(v):,.0f}" if v else "–" for v in found.values())])
    return [Table("What it costs (medians)", ["", *(title for title, _ in costs.values())], rows)] if costs else []


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def _gap_table(study: Mapping[str, Any]) -> list[Table]:
    gaps = {n: g for n, g in study.get("differences", {}).items() if g}
    if not gaps:
        return []
    head = ["", *(f"accuracy, {SPLITS[s]}" for s in SPLITS)]
    rows = [[n, *(_interval(g[s]) if s in g else "–" for s in SPLITS)] for n, g in gaps.items()]
    return [Table(f"Less {study['against']}, on the same pairs [95% interval, prompts and seeds]", head, rows)]


def _interval(gap: Mapping[str, float]) -> str:
    return f"{gap['mean']:+.3f} [{gap['ci_low']:+.3f}, {gap['ci_high']:+.3f}]"


def _judge_figures(study: Mapping[str, Any], kind: str) -> Figures:
    entries = study[kind]
    figures: Figures = []
    for key, label in _measures(entries).items():
        rows = {n: {SPLITS[s]: _values(e, s, key) for s in SPLITS} for n, e in entries.items()}
        figures.append((label[0].upper() + label[1:], dots(rows, "Spearman" if key == "spearman" else "ordered right")))
    gaps = {n: g["id"] for n, g in study.get("differences", {}).items() if "id" in g}
    if gaps:
        title = f"Accuracy less that of {study['against']}, {SPLITS['id']}"
        figures.append((title, intervals(gaps, "difference, 95% interval")))
    return figures


def _alignment(study: Mapping[str, Any]) -> tuple[str, list[Table], Figures]:
    arms, less = study["arms"], study["differences"]
    gains = {**{n: a["gain"] for n, a in arms.items()}, **{f"refl less {n}": d for n, d in less.items()}}
    rows = []
    for name, arm in arms.items():
        kept = arm["feature_diversity_ratio"].values()
        rows.append([name, _interval(arm["gain"]), ", ".join(f"{v:.2f}" for v in kept)])
    rows += [[f"refl less {n}", _interval(d), ""] for n, d in less.items()]
    head = ["arm", "gain in oracle fidelity [95% interval]", "feature diversity of the start's, by seed"]
    return (
        "Study of alignment",
        [Table(f"Against the start ({study['start']:.3f})", head, rows)],
        [("Gain in oracle fidelity", intervals(gains, "gain, 95% interval over prompts"))],
    )


FOLD_MEASURES = {
    "accuracy": "ordered right",
    "label_accuracy": "as people chose",
    "spearman": "rank correlation within a prompt",
    "disagreement": "disagreement of both orders",
    "answer_mass": "answer mass",
}


def _folds(study: Mapping[str, Any]) -> tuple[str, list[Table], Figures]:
    folds, means = study["folds"], study["mean"]
    known = {k: label for k, label in FOLD_MEASURES.items() if k in means}
    rows = [
        [
            name,
            str(f["num_train"]),
            str(f["num_held_out"]),
            *("–" if f.get(k) is None else f"{f[k]:.3f}" for k in known),
        ]
        for name, f in folds.items()
    ]
    summary = [
        "mean [95%]",
        "",
        "",
        *(_mean(means[k]) for k in known),
    ]
    head = ["held out", "trained on", "measured on", *known.values()]
    title = (
        "Every fold on records that its judge has not seen; the interval over folds is rough: they share most records"
    )
    values = {name: {"held-out records": [f["accuracy"]]} for name, f in folds.items() if f.get("accuracy") is not None}
    return (
        "Cross-validation",
        [Table(title, head, [*rows, summary])],
        [("Accuracy by fold", dots(values, "ordered right"))],
    )


def _mean(found: Mapping[str, float | None]) -> str:
    """A mean with its interval, which a single fold has none of."""
    if found["ci_low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} [{found['ci_low']:.3f}, {found['ci_high']:.3f}]"
