"""`rewarddance study weights`: what the parts of a composite are worth, and the weights that fit people's choices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import say, tracked
from rewarddance.core.runs import environment, write_json
from rewarddance.core.seen import fingerprint, read_seen
from rewarddance.data.parquet import RecordTable
from rewarddance.evaluate.weights import JudgedChoices, ablation, covers, fitted_weights, suggestion
from rewarddance.jobs.composite import load_composite
from rewarddance.jobs.load import find
from rewarddance.jobs.score import scored_file
from rewarddance.lab.study_tables import as_markdown, weight_tables
from rewarddance.reward.composite import Composite
from rewarddance.reward.composite_config import JudgePartConfig, load_composite_config

RECORDS = 16
"""Records that are judged at once."""


def study_weights(
    file: Path,
    data: Path,
    out: Path,
    *,
    goal: str = "",
    constraints: str = "",
    criterion: str | None = None,
    most: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Drop, double and fit the weights of a composite, and write the reasons for them.

    The parts judge every choice once. Prompts that a judge among the parts was trained on are left out.

    Args:
        file: a fitted composite.
        data: a folder (its held-out prompts, if it has some), or a Parquet file.
        goal, constraints: what the reward is for, and what the deployment forbids; kept with the figures.
        criterion: of the records to use. None: `overall` if it is one of several criteria, otherwise all records.
        most: largest number of records, evenly spread.

    Returns:
        goal, constraints, weights (as they are), fitted (`fitted_weights`), ablation, suggestion, rationale
        (sentences), num_choices, num_prompts, num_refused, num_known. Also in `out/study.json`, with tables in
        `out/table.md`.

    Raises:
        ConfigError: the composite cannot be loaded, has only one part, or is no weighted sum.
        InputError: too few choices, or none of this criterion.
    """
    composite = load_composite(file)
    if len(composite.parts) < 2:
        raise ConfigError(f"{file}: has one part; there are no weights to study")
    if composite.combine != "sum":
        raise ConfigError(f"{file}: combine is {composite.combine}; this study is about weighted sums")
    table, num_known = _chosen(file, RecordTable.open(scored_file(data)), criterion, most)
    choices, num_refused = collect_choices(composite, table)
    fitted = fitted_weights(choices, seed=seed)
    rows = ablation(choices, composite.weights, seed)
    study: dict[str, Any] = {
        "composite": str(file),
        "data": table.name,
        "goal": goal,
        "constraints": constraints,
        "weights": dict(composite.weights),
        "fitted": fitted,
        "ablation": rows,
        "suggestion": suggestion(fitted),
        "num_choices": len(choices.labels),
        "num_prompts": len(set(choices.prompts)),
        "num_refused": num_refused,
        "num_known": num_known,
    }
    study["rationale"] = rationale(study)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "study.json", {**study, **environment(), "seed": seed})
    (out / "table.md").write_text(as_markdown(weight_tables(study)))
    return study


def _chosen(file: Path, table: RecordTable, criterion: str | None, most: int) -> tuple[RecordTable, int]:
    """Records of the criterion with prompts that no judge among the parts knows, and how many the judges know."""
    criteria, prompts, labels = table.criteria, table.prompts, table.choice_labels
    if criterion is None and len(set(criteria)) > 1 and "overall" in criteria:
        criterion = "overall"
    rows = [i for i, c in enumerate(criteria) if labels[i] and criterion in (None, c)]
    if not rows:
        raise InputError(
            f"{table.name}: no choices of criterion {criterion!r}; it has {', '.join(sorted(set(criteria)))}"
        )
    parts = load_composite_config(file).parts.values()
    judges = [find(p.judge, "judge") for p in parts if isinstance(p, JudgePartConfig)]
    seen = [read_seen(folder) for folder in judges]
    if any(s is None for s in seen):
        say(f"{file}: it is not known which prompts one of its judges was trained on; some may be among these")
    known = frozenset[str]().union(*(s for s in seen if s is not None))
    new = [i for i in rows if fingerprint(prompts[i]) not in known]
    if not new:
        raise InputError(
            f"{table.name}: the judges of the composite were trained on every prompt of it; use other data"
        )
    if len(new) < len(rows):
        say(f"{table.name}: left out {len(rows) - len(new)} records whose prompts a judge of the composite knows")
    return table.take(new).spread(most), len(rows) - len(new)


@torch.no_grad()
def collect_choices(composite: Composite, records: Sequence[PreferenceRecord]) -> tuple[JudgedChoices, int]:
    """The choices of some records with the parts' values, and how many choices a part refused."""
    names = tuple(composite.parts)
    z: list[np.ndarray] = []
    labels: list[float] = []
    prompts: list[str] = []
    for start in tracked(range(0, len(records), RECORDS), "choices by the parts"):
        rows = range(start, min(start + RECORDS, len(records)))
        labelled = [(c, c.label) for i in rows for c in records[i].comparisons() if c.label is not None]
        parts = composite.judge([c for c, _ in labelled]).parts
        z.append(torch.stack([parts[name] for name in names], 1).double().cpu().numpy())
        labels += [label for _, label in labelled]
        prompts += [c.prompt for c, _ in labelled]
    values = np.concatenate(z)
    kept = np.isfinite(values).all(1)
    kept_prompts = tuple(p for p, k in zip(prompts, kept, strict=True) if k)
    return JudgedChoices(names, values[kept], np.array(labels)[kept], kept_prompts), int((~kept).sum())


def rationale(study: dict[str, Any]) -> list[str]:
    """Why the weights are as they are, in sentences: goal, ablation, constraints."""
    lines = [f"Goal: {study['goal'] or 'not stated; name it with --goal'}."]
    for row in study["ablation"]:
        if row["change"] != "drop":
            continue
        low, high = row["accuracy_change_ci"]
        effect = "is not clear" if low <= 0 <= high else "loses agreement" if high < 0 else "gains agreement"
        lines.append(
            f"Without {row['part']} the order agrees with people in {row['accuracy']:.3f} of the choices "
            f"({row['accuracy_change']:+.3f} [{low:+.3f}, {high:+.3f}]): dropping it {effect}."
        )
    for name, fitted in study["fitted"].items():
        low, high = fitted["weight_ci"]
        inside = "within" if covers((low, high), study["weights"][name]) else "outside"
        lines.append(
            f"The choices ask for a weight of {fitted['weight']:.2f} [{low:.2f}, {high:.2f}] for {name}; "
            f"{study['weights'][name]:.2f} lies {inside} the interval."
        )
    lines.append(f"Constraints: {study['constraints'] or 'none stated; name them with --constraints'}.")
    return lines
