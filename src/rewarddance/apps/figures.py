"""Figures of the reports, as pieces of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = {"ink": "#1d2733", "proxy": "#c2571a", "gold": "#1f6f8b", "soft": "#8a97a6", "good": "#2e7d4f"}

PALETTE = [COLOURS["gold"], COLOURS["proxy"], COLOURS["soft"], COLOURS["good"], "#7a4fa3", "#b58900"]
PALETTE += ["#b03060", "#3c6e71", "#6b4f3a", COLOURS["ink"]]
"""Colours of the lines of a figure, in order."""


def framed(figure: go.Figure, y: str, x: str = "step", height: int = 300) -> str:
    """The figure as HTML, in the reports' colours, for a page that contains plotly's script."""
    figure.update_layout(
        template="simple_white",
        height=height,
        margin={"l": 56, "r": 16, "t": 52, "b": 44},
        font={"family": "system-ui, sans-serif", "size": 13, "color": COLOURS["ink"]},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis_title=x,
        yaxis_title=y,
    )
    config = {"displayModeBar": False, "responsive": True}  # the bar would cover the legend
    html: str = figure.to_html(full_html=False, include_plotlyjs=False, default_width="100%", config=config)
    return html


def curves(metrics: list[dict[str, Any]], names: dict[str, str], y: str, dashed: tuple[str, ...] = ()) -> str | None:
    """A line figure of some metrics over steps, or None if none was logged.

    Args:
        names: metric key to legend entry.
    """
    figure = go.Figure()
    for i, (key, label) in enumerate(names.items()):
        points = [(m["step"], m[key]) for m in metrics if isinstance(m.get(key), int | float)]
        if points:
            xs, ys = zip(*points, strict=True)
            line = {"color": PALETTE[i % len(PALETTE)], "dash": "dot" if key in dashed else "solid"}
            mode = "lines+markers" if len(points) < 30 else "lines"
            figure.add_trace(go.Scatter(x=xs, y=ys, name=label, mode=mode, line=line))
    return framed(figure, y) if figure.data else None


def intervals(rows: Mapping[str, Mapping[str, float]], x: str) -> str:
    """Means with their 95% intervals (`mean`, `ci_low`, `ci_high`), one row each, and a line at 0."""
    names, mean = list(rows), [r["mean"] for r in rows.values()]
    up = [r["ci_high"] - r["mean"] for r in rows.values()]
    down = [r["mean"] - r["ci_low"] for r in rows.values()]
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": COLOURS["ink"]}
    figure = go.Figure(
        go.Scatter(x=mean, y=names, error_x=bars, mode="markers", marker={"size": 10, "color": COLOURS["gold"]})
    )
    figure.add_vline(x=0, line={"color": COLOURS["ink"], "dash": "dot", "width": 1.5})  # the template's width is 0
    figure.update_yaxes(autorange="reversed")
    return framed(figure, "", "<br>".join(wrap(x, 36)), height=130 + 30 * len(rows))


def dots(rows: Mapping[str, Mapping[str, Sequence[float]]], x: str) -> str | None:
    """Measurements of each row as small dots and their mean as a large dot. Each series has a colour.

    Args:
        rows: for every row, its values by series.

    Returns:
        None if no row has values.
    """
    figure = go.Figure()
    series = list(dict.fromkeys(s for values in rows.values() for s, measured in values.items() if measured))
    for name, colour in zip(
        series, [COLOURS["gold"], COLOURS["proxy"], COLOURS["good"], COLOURS["soft"]], strict=False
    ):
        single = [(v, row) for row, values in rows.items() for v in values.get(name, ())]
        means = [(fmean(values[name]), row) for row, values in rows.items() if values.get(name)]
        for points, size, shown in ((single, 5, False), (means, 11, True)):
            xs, ys = zip(*points, strict=True)
            marker = {"size": size, "color": colour, "opacity": 1.0 if shown else 0.6}
            figure.add_trace(
                go.Scatter(x=xs, y=ys, name=name, mode="markers", marker=marker, legendgroup=name, showlegend=shown)
            )
    figure.update_yaxes(autorange="reversed", showgrid=True)
    return framed(figure, "", x, height=140 + 28 * len(rows)) if figure.data else None


@dataclass(frozen=True)
class Line:
    """What `lines` draws for one name, over two quantities.

    Attributes:
        place: index of its colour in `PALETTE`.
        paths: thin lines of (first quantity, second quantity, value).
        points: (first quantity, second quantity) of large points; values: their means with intervals (`mean`, `ci_low`,
            `ci_high`; the last two may be None); labels: shown beside the pointer.
    """

    name: str
    place: int
    paths: Sequence[Sequence[tuple[float, float, float]]]
    points: Sequence[tuple[float, float]]
    values: Sequence[Mapping[str, Any]]
    labels: Sequence[str]


def lines(shown: Sequence[Line], axes: tuple[str, str], y: str) -> str | None:
    """Two panels with one value over two quantities; None if there is nothing to draw."""
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04)
    for line in shown:
        colour = PALETTE[line.place % len(PALETTE)]
        for panel in (0, 1):
            at = {"row": 1, "col": panel + 1}
            for path in line.paths:
                xs, ys = [p[panel] for p in path], [p[2] for p in path]
                thin = go.Scatter(x=xs, y=ys, mode="lines", line={"color": colour, "width": 1}, opacity=0.6)
                figure.add_trace(thin.update(name=line.name, legendgroup=line.name, showlegend=False), **at)
            means, bars = _bars(line.values)
            bars["color"] = colour
            points = go.Scatter(x=[p[panel] for p in line.points], y=means, error_y=bars, mode="markers")
            points.update(marker={"size": 10, "color": colour}, text=list(line.labels), name=line.name)
            figure.add_trace(points.update(legendgroup=line.name, showlegend=panel == 0), **at)
    if not figure.data:
        return None
    figure.update_xaxes(title_text=axes[1], row=1, col=2)
    return framed(figure, y, axes[0], height=420)


def _bars(values: Sequence[Mapping[str, Any]]) -> tuple[list[float], dict[str, Any]]:
    """Means, and their error bars; a mean without an interval has bars of length 0."""
    up, down = ([0.0 if v[end] is None else abs(v[end] - v["mean"]) for v in values] for end in ("ci_high", "ci_low"))
    return [v["mean"] for v in values], {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
