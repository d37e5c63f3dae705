"""The tables of `study alignment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rewarddance.lab.alignment_clips import MEASURES, VERDICTS
from rewarddance.lab.study_tables import Table, gold_name_of, mean_interval, signed_interval

MARKS = {"work": "equal work", "kl": "equal KL", "end": "the end"}


def alignment_tables(study: Mapping[str, Any]) -> list[Table]:
    """Every arm at every mark: gains and differences, what they cost, gains by category, and the second set."""
    first, *others = study["sets"]
    rows = study["marks"]
    tables = [_gain_table(study, first), _cost_table(rows), _category_table(study, first)]
    if any("clips" in row for row in rows):
        measures = _measures_table(rows)
        tables[1:1] = [_clip_table(rows), *([measures] if measures.rows else [])]  # earlier versions have none
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
        f"Gain in {gold_name_of(study)} over the start ({study['start'][name]:.3f}) on {num} prompts ({name}). "
        "Intervals of 95%: Student's over seeds, and a bootstrap over prompts for these seeds. A difference is paired "
        "by seed. The smallest difference that could be seen is that of a paired t-test over the seeds with 80% power "
        "at a two-sided level of 5%. It is rough, because the spread is estimated from the same few seeds"
    )
    head = ["arm, measured at", "seeds", "gain [over seeds]", "gain [over prompts]", "minus"]
    return Table(title, [*head, "difference [over seeds]", "smallest difference that could be seen"], rows)


def _against(row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What a row's clips are compared with: the start and its baselines, with the figures of each."""
    return [("the start", row["clips"]), *((name_of(m), m["clips"]) for m in row["minus"])]


def _clip_table(marks: Sequence[Mapping[str, Any]]) -> Table:
    """Good-same-bad and motion of every row against the start and its baselines."""
    rows = []
    for row in marks:
        for other, figures in _against(row):
            cells = [name_of(row), other]
            for name in VERDICTS:
                if name in figures:
                    shares = figures[name]
                    cells.append(f"{shares['good']:.2f} / {shares['same']:.2f} / {shares['bad']:.2f}")
                    cells += [signed_interval(shares["gsb"][over]) for over in ("over_seeds", "over_prompts")]
            moving = figures["moving"]
            cells.append(f"{moving['after']:.2f} from {moving['before']:.2f}")
            rows.append([*cells, signed_interval(moving["change"]["over_prompts"])])
    title = (
        "Good, same, bad: shares of pairs of clips of one prompt and noise, and GSB, (G - B) / (G + S + B), with the "
        "intervals of the first table. Two clips are the same if they differ by at most a limit. A third of the pairs "
        "of the start's clips of one development prompt differ by at most this limit. Moving: share of clips that move"
    )
    head = ["arm, measured at", "against"]
    for name, title_of in VERDICTS.items():
        if any(name in row["clips"] for row in marks):
            head += [f"good / same / bad by {title_of}", "GSB [over seeds]", "GSB [over prompts]"]
    return Table(title, [*head, "moving", "change [over prompts]"], rows)


def _measures_table(marks: Sequence[Mapping[str, Any]]) -> Table:
    """Alignment scores, dynamic degree, criteria and Fréchet distance of every row and of what it is compared with."""
    rows = []
    for row in marks:
        for other, figures in _against(row):
            for name, f in figures.get("measures", {}).items():
                levels = [mean_interval(f[side]) for side in ("before", "after")]
                changes = [signed_interval(f["change"][over]) for over in ("over_seeds", "over_prompts")]
                rows.append([name_of(row), other, MEASURES[name], *levels, *changes])
            if "frechet" in figures:
                f = figures["frechet"]
                levels = [f"{f[side]:.3f}" for side in ("before", "after")]
                rows.append(
                    [name_of(row), other, "Fréchet distance", *levels, signed_interval(f["change"]["over_seeds"]), "–"]
                )
    title = (
        "Measures of clips, of what an arm is compared with (before) and of the arm (after), with bootstraps over "
        "prompts. Fréchet distance: between features of the clips and those of as many right clips of the same "
        "prompts; lower is better. It is too large with so few clips, so only its change says something"
    )
    head = ["arm, measured at", "against", "measure", "before", "after"]
    return Table(title, [*head, "change [over seeds]", "change [over prompts]"], rows)


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
        "its standard deviations at the start. Hacking: the verdict of `evaluate`, from the intervals of both rises"
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
