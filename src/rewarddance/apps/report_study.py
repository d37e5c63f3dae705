"""Tables and figures of a study's report, from its `study.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rewarddance.apps.figures import Line, dots, intervals, lines
from rewarddance.lab.alignment_tables import MARKS, alignment_tables, name_of
from rewarddance.lab.study_tables import (
    SPLITS,
    Table,
    entries_of,
    fold_table,
    gold_name_of,
    judge_tables,
    measures_of,
    search_tables,
    values_of,
    weight_tables,
)

Figures = list[tuple[str, str | None]]


def study_content(study: Mapping[str, Any]) -> tuple[str, list[Table], Figures]:
    """Title, tables and figures of a study of judges (paradigms or sizes), of alignment, of searches, of a composite's
    weights, or of a cross-validation.
    """
    if "folds" in study:
        folds = study["folds"].items()
        key, axis = (
            ("rating_spearman", "Spearman") if "rating_spearman" in study["mean"] else ("accuracy", "ordered right")
        )
        values = {name: {"held-out records": [f[key]]} for name, f in folds if f.get(key) is not None}
        return "Cross-validation", [fold_table(study)], [("By fold", dots(values, axis))]
    if "ablation" in study:
        shown = {n: _bar(f["weight"], f["weight_ci"]) for n, f in study["fitted"].items()}
        changes = {
            f"{r['change']} {r['part'] or 'all'}": _bar(r["accuracy_change"], r["accuracy_change_ci"])
            for r in study["ablation"]
            if "accuracy_change" in r
        }
        drawn: Figures = [
            ("Fitted weights", intervals(shown, "weight, 95% interval over prompts")),
            ("Agreement with people, minus that of the file's weights", intervals(changes, "difference")),
        ]
        return "Study of weights", weight_tables(study), drawn
    if "marks" in study:
        return "Study of alignment", alignment_tables(study), _alignment_figures(study)
    if "rows" in study:
        gaps = {
            f"{r['search']}, {r['budget']} NFE, {r['verifier']}": r["minus_best_of_n"]
            for r in study["rows"]
            if "minus_best_of_n" in r
        }
        axis = f"{gold_name_of(study)}, 95% interval over prompts"
        searched: Figures = [("Minus best-of-N", intervals(gaps, axis))] if gaps else []
        return "Study of searches", search_tables(study), searched
    title = "Study of paradigms" if "variants" in study else "Study of sizes"
    return title, judge_tables(study), _judge_figures(study)


def _bar(value: float, interval: Sequence[float]) -> dict[str, float]:
    return {"mean": value, "ci_low": interval[0], "ci_high": interval[1]}


def _alignment_figures(study: Mapping[str, Any]) -> Figures:
    """The gain against KL and against work, and the differences to the baseline."""
    first = next(iter(study["sets"]))
    shown: list[Line] = []
    for place, arm in enumerate(dict.fromkeys([*study["curves"], *(row["arm"] for row in study["marks"])])):
        rows = [row for row in study["marks"] if row["arm"] == arm]
        points = [(fmean(row["kl"].values()), row["work"]["generator_passes"]) for row in rows]
        gains = [row["sets"][first]["over_seeds"] for row in rows]
        curves = study["curves"].get(arm, {}).values()
        start = study["start_curve"]
        paths = [[(0.0, 0, 0.0), *((p["kl"], p["passes"], p["gold"] - start) for p in curve)] for curve in curves]
        shown.append(Line(arm, place, paths, points, gains, [MARKS[row["mark"]] for row in rows]))
    axes = "KL to the start, nats a dimension", "forward passes of the generator"
    title = (
        "Gain against KL and against work. Lines: development prompts during training, one line a seed. Points: "
        f"{first} prompts, mean over seeds with Student's 95% interval"
    )
    figures: Figures = [(title, lines(shown, axes, f"gain in {gold_name_of(study)}"))]
    gaps = {
        f"{name_of(row)} minus {name_of(minus)}": gap
        for row in study["marks"]
        for minus in row["minus"]
        if (gap := minus["sets"][first]["over_seeds"])["ci_low"] is not None
    }
    if gaps:
        figures.append(("Differences, paired by seed", intervals(gaps, "difference [95% over seeds]")))
    return figures


def _judge_figures(study: Mapping[str, Any]) -> Figures:
    entries = entries_of(study)
    figures: Figures = []
    for key, label in measures_of(entries).items():
        rows = {n: {SPLITS[s]: values_of(e, s, key) for s in SPLITS} for n, e in entries.items()}
        figures.append((label[0].upper() + label[1:], dots(rows, "Spearman" if key == "spearman" else "ordered right")))
    gaps = {n: g["id"] for n, g in study.get("differences", {}).items() if "id" in g}
    if gaps:
        title = f"Accuracy minus that of {study['against']}, {SPLITS['id']}"
        figures.append((title, intervals(gaps, "difference, 95% interval")))
    return figures
