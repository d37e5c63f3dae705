"""One self-contained HTML page from a run folder or a demo: reads files only, never a model."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image
from plotly.offline import get_plotlyjs

from rewarddance.apps.figures import curves, intervals
from rewarddance.apps.report_study import study_content
from rewarddance.core.errors import RunError
from rewarddance.core.runs import RunFolder


def write_report(folder: Path) -> Path:
    """Write `report.html` for a demo folder (with `summary.json`), a study (`study.json`), folds
    (`cross_validation.json`) or a single run folder.

    Raises:
        RunError: nothing there to report on.
    """
    if (folder / "summary.json").is_file():
        page = _demo_page(folder)
    elif (folder / "study.json").is_file():
        page = _study_page(folder, "study.json")
    elif (folder / "cross_validation.json").is_file():
        page = _study_page(folder, "cross_validation.json")
    elif (folder / "run.json").is_file():
        page = _run_page(folder)
    else:
        raise RunError(
            f"{folder}: nothing to report on (no run.json, study.json, cross_validation.json or summary.json)"
        )
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


def _categories(evaluation: dict[str, Any]) -> str:
    return intervals({**evaluation["categories"], "all": evaluation["gain"]}, "gain in oracle fidelity")


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
    known = second or RunFolder(run).read()["config"].get("prompts") is None
    title = f"Proxy and {'second judge' if second else 'oracle'} on the probe" if known else "The judge on the probe"
    gap = {"probe/gap": "gap, in standard deviations of the start"}
    return _figure_list(
        [
            (title, curves(metrics, probe, "mean")),
            ("Reward during training", curves(metrics, reward, "P(yes)")),
            ("KL to the frozen policy", curves(metrics, {"kl": "KL per dimension"}, "KL")),
            ("Gap: rise of the proxy less rise of the gold standard", curves(metrics, gap, "gap")),
        ]
    )


def _judge_figures(run: Path) -> list[dict[str, Any]]:
    metrics = RunFolder(run).metrics()
    names = {"id/accuracy": "held-out prompts", "ood/accuracy": "out of distribution", "accuracy": "training labels"}
    return _figure_list(
        [
            ("Judge: loss", curves(metrics, {"loss": "cross-entropy"}, "loss")),
            ("Judge: pairs ordered right", curves(metrics, names, "accuracy", ("accuracy",))),
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
        categories=_categories(evaluation) if evaluation else None,
        judge=_read(folder / "judge" / "evaluation.json"),
        figures=[*_align_figures(folder / "align"), *_judge_figures(folder / "judge")],
        pairs=_pairs(folder / "align" / "samples"),
        winners=_winners(folder / "best_of_n"),
        run=RunFolder(folder / "align").read(),
        next_steps=True,
    )


def _study_page(folder: Path, name: str) -> str:
    study = _read(folder / name)
    title, tables, figures = study_content(study)
    how = {k: study[k] for k in ("command", "config", "git", "hardware", "packages", "python") if k in study}
    return _render(
        title=f"{title}: {folder.name}", tables=tables, figures=_figure_list(figures), figures_title="Figures", run=how
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
        categories=_categories(evaluation) if is_align and evaluation else None,
        by_judge=_read(folder / "evaluation_prompts.json"),
        judge=evaluation if run["kind"] == "judge" else None,
        figures=_align_figures(folder) if is_align else _judge_figures(folder),
        pairs=_pairs(folder / ("samples_prompts" if evaluation is None and is_align else "samples")),
        winners=[],
        run=run,
        next_steps=False,
    )
