"""Tables and figures of a study's report, from its `study.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewarddance.apps.figures import dots, intervals
from rewarddance.lab.study_tables import (
    SPLITS,
    Table,
    alignment_table,
    entries_of,
    fold_table,
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
            ("Agreement with people, less that of the weights as they are", intervals(changes, "difference")),
        ]
        return "Study of weights", weight_tables(study), drawn
    if "arms" in study:
        gains = {n: a["gain"] for n, a in study["arms"].items()}
        gains |= {f"refl minus {n}": d for n, d in study["differences"].items()}
        figure = "Gain in oracle fidelity", intervals(gains, "gain, 95% interval over prompts")
        return "Study of alignment", [alignment_table(study)], [figure]
    if "rows" in study:
        gaps = {
            f"{r['search']}, {r['budget']} NFE, {r['verifier']}": r["minus_best_of_n"]
            for r in study["rows"]
            if "minus_best_of_n" in r
        }
        axis = "oracle fidelity, 95% interval over prompts"
        searched: Figures = [("Minus best-of-N", intervals(gaps, axis))] if gaps else []
        return "Study of searches", search_tables(study), searched
    title = "Study of paradigms" if "variants" in study else "Study of sizes"
    return title, judge_tables(study), _judge_figures(study)


def _bar(value: float, interval: Sequence[float]) -> dict[str, float]:
    return {"mean": value, "ci_low": interval[0], "ci_high": interval[1]}


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
