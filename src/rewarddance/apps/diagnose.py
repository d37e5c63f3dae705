"""`rewarddance diagnose`: signs of reward hacking in alignment runs, side by side. Reads run folders only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, select_autoescape
from plotly.offline import get_plotlyjs

from rewarddance.apps.figures import PALETTE, framed
from rewarddance.core.errors import RunError
from rewarddance.core.runs import RunFolder

SIGNS: dict[str, tuple[str, str]] = {
    "probe/gold": ("Gold standard", "The measure that training does not see. It must not fall."),
    "probe/truth": ("Exact measure", "The task's own measure, beside a gold judge. The alarm does not read it."),
    "probe/proxy": ("Judge's P(better than the start)", "Rises in every run that works; alone it says nothing."),
    "probe/gap": ("Gap", "Rise of the proxy minus rise of the gold standard, in standard deviations of the start."),
    "probe/kl": ("KL to the frozen policy", "One step of the SDE at fixed states, nats a dimension."),
    "probe/proxy_std": ("Spread of the proxy", "Falls to 0 when all pictures please the judge alike."),
    "probe/proxy_within": (
        "Spread of the proxy within prompts",
        "At 0 the judge cannot tell samples of a prompt apart.",
    ),
    "probe/proxy_across": ("Spread of the proxy across prompts", "Grows when some prompts are hacked before others."),
    "probe/saturation": ("Saturation", "Share of P(yes) above 0.95 or below 0.05: there the answer hardly changes."),
    "probe/disagreement": ("Disagreement of ranks", "Share of pairs that judge and gold standard order differently."),
    "probe/parts_std": ("Disagreement of the judges", "Of a set of judges: standard deviation of their margins."),
    "probe/parts_split": ("Judges with other signs", "Of a set of judges: share of pictures that they disagree about."),
    "probe/sensitivity": ("Surface sensitivity", "Fall of the margin after a small step against its gradient."),
    "probe/diversity": ("Diversity", "Distance between two samples of one prompt, root mean square of pixels."),
    "probe/drift_sharpness": ("Drift of sharpness", "In standard deviations of the start. Fine texture fools judges."),
    "probe/drift_colourfulness": ("Drift of colourfulness", "In standard deviations of the start."),
    "probe/dynamics": ("Motion", "Dynamic degree of clips. It falls when still clips please the judge."),
    "probe/flicker": ("Flicker", "Difference of a frame from the mean of its neighbours."),
    "probe/unseen_gap": ("Frames that the judge does not see", "Fall of P(better) on these frames. It must stay at 0."),
    "within_std": ("Spread of scores in a group", "Algorithms with groups learn from this spread."),
    "zero_variance": ("Groups that taught nothing", "Share of the step's groups."),
    "clipped": ("Clipped ratios", "Share of policy-gradient terms without a gradient."),
}
"""For each metric: its title and how to read it, in the order of the page."""


def write_diagnosis(runs: Sequence[Path], page: Path) -> Path:
    """Write the page; see `diagnosis` for errors."""
    environment = Environment(loader=PackageLoader("rewarddance.apps"), autoescape=select_autoescape())
    content = environment.get_template("diagnose.html").render(plotly=get_plotlyjs(), **diagnosis(runs))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(content)
    return page


def diagnosis(runs: Sequence[Path]) -> dict[str, Any]:
    """Title, figures and alarms of the page.

    Raises:
        RunError: a folder holds no alignment run, or no run has logged a probe.
    """
    logs = dict(_log(run) for run in _named(runs).items())
    figures = [
        {"title": title, "note": note, "html": html}
        for key, (title, note) in SIGNS.items()
        if (html := _lines(logs, key, title)) is not None
    ]
    if not figures:
        raise RunError(f"{runs[0]}: no probes logged yet")
    alarms = [
        {"run": name, "step": row["step"], "text": row["alarm"]}
        for name, rows in logs.items()
        for row in rows
        if "alarm" in row
    ]
    ends = [{"run": name, **_ends(rows)} for name, rows in logs.items()]
    return {"title": "Diagnosis of " + ", ".join(logs), "figures": figures, "alarms": alarms, "ends": ends}


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by a short name: the folder's name, or its path if two folders have the same name."""
    names = [run.resolve().name for run in runs]
    return {(n if names.count(n) == 1 else str(r)): r for n, r in zip(names, runs, strict=True)}


def _log(run: tuple[str, Path]) -> tuple[str, list[dict[str, Any]]]:
    name, path = run
    kind = RunFolder(path).read()["kind"]
    if kind != "align":
        raise RunError(f"{path}: a {kind} run; diagnose reads alignment runs")
    return name, RunFolder(path).metrics()


def _ends(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """First, best and last gold value with their steps, and the reason why the run ended."""
    gold = [(row["step"], row["probe/gold"]) for row in rows if row.get("probe/gold") is not None]
    ends: dict[str, Any] = {"stopped": next((row["stopped"] for row in rows if "stopped" in row), None)}
    if gold:
        ends |= {"first": gold[0], "best": max(gold, key=lambda point: point[1]), "last": gold[-1]}
    return ends


def _lines(logs: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str) -> str | None:
    """One line for each run with marks at its alarms, or None if no run logged the metric."""
    figure = go.Figure()
    for i, (name, rows) in enumerate(logs.items()):
        points = [(row["step"], row[key], "alarm" in row) for row in rows if isinstance(row.get(key), int | float)]
        if not points:
            continue
        xs, ys, alarms = zip(*points, strict=True)
        colour = PALETTE[i % len(PALETTE)]
        marker = {"symbol": ["x" if alarm else "circle" for alarm in alarms], "size": [11 if a else 5 for a in alarms]}
        mode = "lines+markers" if len(points) < 40 else "lines"
        figure.add_trace(go.Scatter(x=xs, y=ys, name=name, mode=mode, line={"color": colour}, marker=marker))
    return framed(figure, title) if figure.data else None
