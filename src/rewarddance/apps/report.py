"""One self-contained HTML page from a run folder or a demo: reads files only, never a model."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image
from plotly.offline import get_plotlyjs

from rewarddance.core.errors import RunError
from rewarddance.core.runs import RunFolder

_COLOURS = {"ink": "#1d2733", "proxy": "#c2571a", "gold": "#1f6f8b", "soft": "#8a97a6", "good": "#2e7d4f"}


def write_report(folder: Path) -> Path:
    """Write `report.html` for a demo folder (with `summary.json`) or a single run folder.

    Raises:
        RunError: nothing there to report on.
    """
    if (folder / "summary.json").is_file():
        page = _demo_page(folder)
    elif (folder / "run.json").is_file():
        page = _run_page(folder)
    else:
        raise RunError(f"{folder}: neither a run nor a demo (no run.json, no summary.json)")
    target = folder / "report.html"
    target.write_text(page)
    return target


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


SMALL, LARGE = 128, 512
"""Sides in pixels: up to `SMALL` a picture is shown as it is and magnified, others as JPEG of at most `LARGE`."""


def _image(path: Path) -> str:
    content, kind = path.read_bytes(), "png"
    with Image.open(path) as image:
        if max(image.size) > SMALL:
            image.thumbnail((LARGE, LARGE))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=90)
            content, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def _layout(figure: go.Figure, y: str, x: str = "step") -> str:
    figure.update_layout(
        template="simple_white",
        height=300,
        margin={"l": 56, "r": 16, "t": 52, "b": 44},
        font={"family": "system-ui, sans-serif", "size": 13, "color": _COLOURS["ink"]},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis_title=x,
        yaxis_title=y,
    )
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, default_width="100%", config={"displaylogo": False, "responsive": True}
    )
    return html


def curves(metrics: list[dict[str, Any]], names: dict[str, str], y: str, dashed: tuple[str, ...] = ()) -> str | None:
    """A line figure of some metrics over steps, or None where none was logged.

    Args:
        names: metric key to legend entry.
    """
    figure = go.Figure()
    palette = [_COLOURS["gold"], _COLOURS["proxy"], _COLOURS["soft"], _COLOURS["good"]]
    for i, (key, label) in enumerate(names.items()):
        points = [(m["step"], m[key]) for m in metrics if isinstance(m.get(key), int | float)]
        if points:
            xs, ys = zip(*points, strict=True)
            line = {"color": palette[i % len(palette)], "dash": "dot" if key in dashed else "solid"}
            mode = "lines+markers" if len(points) < 30 else "lines"
            figure.add_trace(go.Scatter(x=xs, y=ys, name=label, mode=mode, line=line))
    return _layout(figure, y) if figure.data else None


def categories_figure(evaluation: dict[str, Any]) -> str:
    """Gain in oracle fidelity by category, with 95% intervals."""
    rows = {**evaluation["categories"], "all": evaluation["gain"]}
    names, gain = list(rows), [r["mean"] for r in rows.values()]
    up = [r["ci_high"] - r["mean"] for r in rows.values()]
    down = [r["mean"] - r["ci_low"] for r in rows.values()]
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": _COLOURS["ink"]}
    figure = go.Figure(
        go.Scatter(x=gain, y=names, error_x=bars, mode="markers", marker={"size": 10, "color": _COLOURS["gold"]})
    )
    figure.add_vline(x=0, line={"color": _COLOURS["soft"], "dash": "dot"})
    figure.update_yaxes(autorange="reversed")
    return _layout(figure, "", "gain in oracle fidelity")


def _pairs(folder: Path) -> list[dict[str, Any]]:
    found = []
    for entry in _read(folder / "samples.json") or []:
        stem = f"{entry['index']:03d}"
        images = {name: _image(folder / f"{stem}_{name}.png") for name in ("before", "after")}
        found.append({"prompt": entry["prompt"], "gold": entry, **{f"{k}_image": v for k, v in images.items()}})
    return found


def _winners(folder: Path) -> list[dict[str, Any]]:
    found = []
    for k, entry in enumerate((_read(folder / "best_of_n.json") or [])[:4]):
        pictures = [
            {
                "image": _image(folder / f"{k}_{i}.png"),
                "oracle": v,
                "margin": entry["margin"][i],
                "best": i == entry["best"],
            }
            for i, v in enumerate(entry["oracle"])
        ]
        found.append({"prompt": entry["prompt"], "pictures": pictures})
    return found


def _figure_list(wanted: list[tuple[str, str | None]]) -> list[dict[str, Any]]:
    return [{"title": title, "html": html} for title, html in wanted if html]


def _align_figures(run: Path) -> list[dict[str, Any]]:
    metrics = RunFolder(run).metrics()
    second = RunFolder(run).read()["config"].get("gold_judge")
    gold = "second judge's P(yes)" if second else "oracle fidelity"
    probe = {"probe/gold": gold, "probe/proxy": "judge's P(yes)"}
    reward = {"reward": "P(yes) against the references", "reward_std": "its spread over the batch"}
    gap = {"probe/gap": "gap, in standard deviations of the start"}
    return _figure_list(
        [
            (f"Proxy and {'second judge' if second else 'oracle'} on the probe", curves(metrics, probe, "mean")),
            ("Reward during training", curves(metrics, reward, "P(yes)")),
            ("KL to the frozen policy", curves(metrics, {"kl": "KL per dimension"}, "KL")),
            ("Gap: rise of the proxy less rise of the gold standard", curves(metrics, gap, "gap")),
        ]
    )


def _judge_figures(run: Path) -> list[dict[str, Any]]:
    metrics = RunFolder(run).metrics()
    names = {"id/accuracy": "held-out prompts", "ood/accuracy": "out of domain", "accuracy": "training labels"}
    return _figure_list(
        [
            ("Judge: loss", curves(metrics, {"loss": "cross-entropy"}, "loss")),
            ("Judge: pairs ordered as the oracle does", curves(metrics, names, "accuracy", ("accuracy",))),
        ]
    )


def _render(**content: Any) -> str:
    environment = Environment(loader=PackageLoader("rewarddance.apps"), autoescape=select_autoescape())
    environment.globals["kind"] = lambda uri: "px" if uri.startswith("data:image/png") else "photo"
    page: str = environment.get_template("report.html").render(plotly=get_plotlyjs(), **content)
    return page


def _demo_page(folder: Path) -> str:
    evaluation = _read(folder / "align" / "evaluation.json")
    return _render(
        title="RewardDance demo",
        summary=_read(folder / "summary.json"),
        fast=bool((_read(folder / "demo.json") or {}).get("fast")),
        evaluation=evaluation,
        categories=categories_figure(evaluation) if evaluation else None,
        judge=_read(folder / "judge" / "evaluation.json"),
        figures=[*_align_figures(folder / "align"), *_judge_figures(folder / "judge")],
        pairs=_pairs(folder / "align" / "samples"),
        winners=_winners(folder / "best_of_n"),
        run=RunFolder(folder / "align").read(),
        next_steps=True,
    )


def _run_page(folder: Path) -> str:
    run = RunFolder(folder).read()
    evaluation = _read(folder / "evaluation.json")
    is_align = run["kind"] == "align"
    return _render(
        title=f"{run['kind']} run {folder.name}",
        summary=None,
        fast=False,
        evaluation=evaluation if is_align else None,
        categories=categories_figure(evaluation) if is_align and evaluation else None,
        by_judge=_read(folder / "evaluation_prompts.json"),
        judge=evaluation if run["kind"] == "judge" else None,
        figures=_align_figures(folder) if is_align else _judge_figures(folder),
        pairs=_pairs(folder / ("samples_prompts" if evaluation is None and is_align else "samples")),
        winners=[],
        run=run,
        next_steps=False,
    )
