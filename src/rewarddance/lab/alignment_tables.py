"""The tables of `study alignment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rewarddance.lab.study_tables import Table, signed_interval

MARKS = {"work": "equal work", "kl": "equal KL", "end": "the end"}


def alignment_tables(study: Mapping[str, Any]) -> list[Table]:
    """Every arm at every mark: gains and differences, what they cost, gains by category, and the second set."""
    first, *others = study["sets"]
    rows = study["marks"]
    tables = [_gain_table(study, first), _cost_table(rows), _category_table(study, first)]
    return tables + [_gain_table(study, name) for name in others]


def name_of(row: Mapping[str, Any]) -> str:
    """An arm and where it was measured."""
    return f"{row['arm']}, {MARKS[row['mark']]}"


def _gain_table(study: Mapping[str, Any], name: str) -> Table:
    num = sum(study["sets"][name].values())
    rows = []
    for row in study["marks"]:
        gain = row["sets"][name]
        intervals = [signed_interval(gain[over]) for over in ("over_seeds", "over_prompts")]
        cells = [name_of(row), str(len(row["seeds"])), *intervals]
        for minus in row["minus"]:
            gap = minus["sets"][name]
            difference = [signed_interval(gap["over_seeds"]), _number(gap["smallest"], "{:.3f}")]
            rows.append([*cells, name_of(minus), *difference])
            cells = ["", "", "", ""]
        if not row["minus"]:
            rows.append([*cells, "–", "", ""])
    title = (
        f"Gain in oracle fidelity over the start ({study['start'][name]:.3f}) on {num} prompts ({name}). Intervals of "
        "95%: Student's over seeds, and a bootstrap over prompts for these seeds. A difference is paired by seed. The "
        "smallest one that could be seen is that of a paired t-test over the seeds with 80% power at a "
        "two-sided level of 5%; it is rough, because the spread is estimated from the same few seeds"
    )
    head = ["arm, measured at", "seeds", "gain [over seeds]", "gain [over prompts]", "minus"]
    return Table(title, [*head, "difference [over seeds]", "smallest difference that could be seen"], rows)


def _cost_table(marks: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for row in marks:
        work = row["work"]
        kl = f"{fmean(row['kl'].values()):.5f}"
        if not all(row["reached"].values()):
            missed = sum(not reached for reached in row["reached"].values())
            kl += f" (not reached by {missed} of {len(row['seeds'])})"
        rows.append(
            [
                name_of(row),
                kl,
                f"{work['generator_passes']:,.0f} ({work['generator_passes_with_gradient']:,.0f})",
                f"{work['judge_calls']:,.0f} ({work['judge_calls_with_gradient']:,.0f})",
                _mean(row["steps"], "{:.0f}"),
                f"{row['seconds']:.0f}",
                f"{row['cpu_seconds']:.0f}",
                _mean(row["feature_diversity_ratio"], "{:.2f}"),
                _mean(row["vendi"], "{:.3f}"),
                _mean(row["proxy"], "{:.3f}"),
                _mean(row["gap"], "{:+.2f}"),
                ", ".join(sorted({v or "–" for v in row["hacking"].values()})),
            ]
        )
    title = (
        "Means over seeds. KL to the start at fixed states, nats a dimension. Work without measurements; in brackets "
        "the part with a gradient. Seconds contain the probes of `align`. Feature diversity is a share of the start's. "
        "Proxy: the arm's judge, P(better than the start). Gap: rise of the proxy minus rise of the oracle, each in "
        "its standard deviations at the start"
    )
    head = ["arm, measured at", "KL", "generator passes", "judge calls", "steps", "seconds", "CPU seconds"]
    return Table(title, [*head, "feature diversity", "Vendi", "proxy", "gap", "hacking"], rows)


def _category_table(study: Mapping[str, Any], name: str) -> Table:
    categories = list(study["sets"][name])
    rows = [
        [name_of(row), *(signed_interval(row["sets"][name]["categories"][c]["over_prompts"]) for c in categories)]
        for row in study["marks"]
    ]
    title = f"Gain by category ({name}), mean over seeds [95% over prompts]"
    return Table(title, ["arm, measured at", *categories], rows)


def _mean(by_seed: Mapping[Any, float | None], form: str) -> str:
    known = [v for v in by_seed.values() if v is not None]
    return form.format(fmean(known)) if known else "–"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
