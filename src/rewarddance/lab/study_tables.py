"""Figures of studies as tables: HTML in reports, Markdown in `table.md`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

SPLITS = {"id": "held-out prompts", "ood": "out of distribution"}
MEASURES = {
    "accuracy_generator": "the generator's own pairs",
    "accuracy_rendered": "rendered and corrupted pairs",
    "spearman": "rank correlation within a prompt",
}
"""Figures of `measure_judge` on data with exact values; other data has `accuracy` alone."""
COSTS = {
    "train_seconds": ("training, s", 1.0),
    "pretrain_seconds": ("pretraining, s", 1.0),
    "peak_memory_mib": ("peak of training, MiB", 1.0),
    "latency_p50": ("latency p50, ms", 1e3),
    "latency_p95": ("p95, ms", 1e3),
    "comparisons_per_second": ("comparisons/s", 1.0),
    "pictures_per_second": ("pictures/s", 1.0),
}
"""Figures of `study_judges.measured_judge`: title, and the factor for its unit."""
FOLD_MEASURES = {
    "accuracy": "ordered right",
    "label_accuracy": "as people chose",
    "spearman": "rank correlation within a prompt",
    "rating_spearman": "rank correlation with ratings, over all pictures",
    "rating_spearman_within": "within a prompt",
    "disagreement": "disagreement of both orders",
    "answer_mass": "answer mass",
}


@dataclass(frozen=True)
class Table:
    """A titled table of texts."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return f"{self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_markdown(tables: Sequence[Table]) -> str:
    return "\n".join(t.markdown() for t in tables)


def values_of(entry: Mapping[str, Any], split: str, key: str) -> list[float]:
    """One figure of all seeds of a variant for which it was measured."""
    return [v for row in entry["seeds"] if (v := row.get(split, {}).get(key)) is not None]


def measures_of(entries: Mapping[str, Any]) -> dict[str, str]:
    """The measures that a study has, with their titles."""
    measured = {k: v for k, v in MEASURES.items() if any(values_of(e, "id", k) for e in entries.values())}
    return measured or {"accuracy": "held-out choices"}


def entries_of(study: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries of a study of paradigms or of sizes."""
    entries: Mapping[str, Any] = study["variants"] if "variants" in study else study["sizes"]
    return entries


def judge_tables(study: Mapping[str, Any]) -> list[Table]:
    """Tables of a study of judges, from the content of its `study.json`."""
    entries = entries_of(study)
    measures = measures_of(entries)
    columns = [(split, key) for split in SPLITS for key in measures]
    head = ["", "parameters", *(f"{measures[k]}, {SPLITS[s]}" for s, k in columns)]
    rows = []
    for name, entry in entries.items():
        cells = [_spread(values_of(entry, s, k)) + _own_interval(entry, s, k) for s, k in columns]
        rows.append([name, f"{entry['parameters'] / 1e6:.1f}M", *cells])
    left_out = {**study.get("skipped", {}), **study.get("unfinished", {})}
    rows += [[name, f"left empty: {reason}", *[""] * (len(head) - 2)] for name, reason in left_out.items()]
    several = any(len(e["seeds"]) > 1 for e in entries.values())
    title = "Mean of the seeds (smallest to largest)" if several else "One seed [95% interval over prompts]"
    return [
        Table(title, head, rows),
        *_difference_table(study),
        *_deviation_table(entries, "seeds"),
        *_deviation_table(entries, "folds"),
        *_cost_table(entries),
    ]


def _deviation_table(entries: Mapping[str, Any], kind: str) -> list[Table]:
    """Mean and standard deviation over seeds or over folds, if a study of sizes has several."""
    measured = {name: entry.get("deviations", {}).get(kind, {}) for name, entry in entries.items()}
    keys = list(dict.fromkeys(key for figures in measured.values() for key in figures))
    if not keys:
        return []

    def title(key: str) -> str:
        split, _, name = key.rpartition("/")
        return FOLD_MEASURES[name] + (f", {SPLITS[split]}" if split else "")

    rows = [
        [name, *(f"{f[k]['mean']:.3f} ± {f[k]['std']:.3f}" if k in f else "–" for k in keys)]
        for name, f in measured.items()
    ]
    return [Table(f"Mean ± standard deviation over {kind}", ["", *map(title, keys)], rows)]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def _own_interval(entry: Mapping[str, Any], split: str, key: str) -> str:
    """The interval over prompts, for a single seed."""
    interval = entry["seeds"][0].get(split, {}).get(f"{key}_ci") if len(entry["seeds"]) == 1 else None
    return f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


def _difference_table(study: Mapping[str, Any]) -> list[Table]:
    gaps = {n: g for n, g in study.get("differences", {}).items() if g}
    if not gaps:
        return []
    head = ["", *(f"accuracy, {SPLITS[s]}" for s in SPLITS)]
    rows = [[n, *(signed_interval(g[s]) if s in g else "–" for s in SPLITS)] for n, g in gaps.items()]
    return [Table(f"Minus {study['against']}, on the same pairs [95% interval, prompts and seeds]", head, rows)]


def _cost_table(entries: Mapping[str, Any]) -> list[Table]:
    every = [row for e in entries.values() for row in e["seeds"]]
    costs = {k: v for k, v in COSTS.items() if any(row.get(k) is not None for row in every)}
    rows = []
    for name, entry in entries.items():
        by_cost = [[r[k] * scale for r in entry["seeds"] if r.get(k) is not None] for k, (_, scale) in costs.items()]
        rows.append([name, *(f"{median(v):,.0f}" if v else "–" for v in by_cost)])
    return [Table("Cost (medians)", ["", *(title for title, _ in costs.values())], rows)] if costs else []


def signed_interval(gap: Mapping[str, float | None]) -> str:
    """A mean with its interval; a single run has none."""
    if gap["ci_low"] is None:
        return f"{gap['mean']:+.3f}"
    return f"{gap['mean']:+.3f} [{gap['ci_low']:+.3f}, {gap['ci_high']:+.3f}]"


def fold_table(study: Mapping[str, Any]) -> Table:
    """Every fold of a cross-validation, and the mean."""
    folds, means = study["folds"], study["mean"]
    measures = {k: label for k, label in FOLD_MEASURES.items() if k in means}
    rows = []
    for name, f in folds.items():
        cells = ["–" if f.get(k) is None else f"{f[k]:.3f}" for k in measures]
        rows.append([name, str(f["num_train"]), str(f["num_held_out"]), *cells])
    rows.append(["mean [95%]", "", "", *(mean_interval(means[k]) for k in measures)])
    title = "Every fold, on records that its judge has not seen (the interval is rough: folds share most records)"
    return Table(title, ["held out", "trained on", "measured on", *measures.values()], rows)


def gold_name_of(study: Mapping[str, Any]) -> str:
    """The name of the study's gold standard. Studies of earlier versions do not store it; they had only pictures."""
    return str(study.get("gold_name", "oracle fidelity"))


def mean_interval(figure: Mapping[str, float | None]) -> str:
    """A mean with its interval; a single fold has none."""
    if figure["ci_low"] is None:
        return f"{figure['mean']:.3f}"
    return f"{figure['mean']:.3f} [{figure['ci_low']:.3f}, {figure['ci_high']:.3f}]"


def weight_tables(study: Mapping[str, Any]) -> list[Table]:
    """A study of a composite's weights: the rationale, the fitted weights, and every change."""
    names = list(study["weights"])
    reasons = Table("Why these weights", ["reason"], [[line] for line in study["rationale"]])
    fitted = [
        [
            n,
            f"{study['weights'][n]:.3f}",
            _within(f["weight"], f["weight_ci"]),
            _within(f["coefficient"], f["coefficient_ci"]),
        ]
        for n, f in study["fitted"].items()
    ]
    weights = Table(
        f"Weights fitted to {study['num_choices']} choices on {study['num_prompts']} prompts [95%, by prompt]",
        ["part", "weight as it is", "fitted weight", "coefficient"],
        fitted,
    )
    rows = [
        [
            row["change"] + (f" {row['part']}" if row["part"] else ""),
            ", ".join(f"{row['weights'][n]:.2f}" for n in names),
            f"{row['accuracy']:.3f}",
            _change(row, "accuracy"),
            f"{row['log_loss']:.3f}",
            _change(row, "log_loss"),
        ]
        for row in study["ablation"]
    ]
    head = [
        "change",
        f"weights of {', '.join(names)}",
        "agrees with people",
        "change [95%]",
        "log loss",
        "change [95%]",
    ]
    return [reasons, weights, Table("Changes of the weights; fitted weights are cross-fitted", head, rows)]


def _within(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _change(row: Mapping[str, Any], key: str) -> str:
    if f"{key}_change" not in row:
        return "–"
    low, high = row[f"{key}_change_ci"]
    return f"{row[f'{key}_change']:+.3f} [{low:+.3f}, {high:+.3f}]"


def search_tables(study: Mapping[str, Any]) -> list[Table]:
    """The gold standard of every verifier and search by budget, its difference to best-of-N, and the cost."""
    rows: Sequence[Mapping[str, Any]] = study["rows"]
    budgets = sorted({r["budget"] for r in rows})
    cells = {(r["verifier"], r["search"], r["budget"]): r for r in rows}
    names = dict.fromkeys((r["verifier"], r["search"]) for r in rows)
    head = ["verifier", "search", *(f"{b} NFE" for b in budgets)]

    def by_budget(text: Callable[[Mapping[str, Any]], str]) -> list[list[str]]:
        lines = {n: [text(cells[*n, b]) if (*n, b) in cells else "–" for b in budgets] for n in names}
        return [[*n, *texts] for n, texts in lines.items() if set(texts) != {"–"}]

    one = study["one_sample"]
    gold = gold_name_of(study)
    title = f"{gold[0].upper()}{gold[1:]} of the winners [95% interval over prompts]"
    title += f"; one sample has {mean_interval(one)}" if one else ""
    tables = [Table(title, head, by_budget(lambda r: mean_interval(r["gold"])))]
    gaps = by_budget(lambda r: signed_interval(r["minus_best_of_n"]) if "minus_best_of_n" in r else "–")
    if gaps:
        tables.append(Table("Minus best-of-N with the same verifier and budget, paired by prompt", head, gaps))
    cost_head = ["verifier", "search", "budget", "NFE", "decodes", "judge calls", "refused", "verifier's score"]
    cost_head += ["feature distance across seeds"]
    return [*tables, Table("Cost of a prompt", cost_head, [_search_cost(r) for r in rows])]


def _search_cost(row: Mapping[str, Any]) -> list[str]:
    counts = [f"{row[k]:.0f}" for k in ("nfe", "decodes", "judge_calls")]
    score = mean_interval(row["score"]) if "score" in row else "–"
    distance = f"{row['diversity']['feature']:.3f}" if "diversity" in row else "–"
    return [row["verifier"], row["search"], str(row["budget"]), *counts, f"{row['refused']:.1f}", score, distance]
