"""One self-contained HTML page from a run folder or a demo: reads files only, never a model."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image
from plotly.offline import get_plotlyjs

from rewarddance.apps.figures import curves, intervals
from rewarddance.apps.report_study import study_content
from rewarddance.core.clips import contact_sheet, spread
from rewarddance.core.errors import RunError
from rewarddance.core.pictures import open_image
from rewarddance.core.plugins import TASKS, load_plugin
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
"""Sides in pixels: a picture of at most `SMALL` is magnified, a larger one becomes a JPEG of at most `LARGE`."""
SHEET, SHEET_FRAMES = 1024, 16
"""Largest side of a contact sheet in pixels, and its largest number of frames. A sheet replaces a clip that cannot
play."""
STRIP = (2048, 512)
"""Largest width and height of a sample grid in pixels."""


def _image(path: Path, most: tuple[int, int] = (LARGE, LARGE)) -> str:
    content = path.read_bytes()
    with open_image(path) as image:
        return _jpeg(image, most) if max(image.size) > SMALL else _uri("png", content)


def _jpeg(image: Image.Image, most: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    image.thumbnail(most)
    image.convert("RGB").save(buffer, "JPEG", quality=90)
    return _uri("jpeg", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def _pairs(folder: Path) -> list[dict[str, Any]]:
    """Samples before and after training, as `evaluate` wrote them. Clips are one animation of both."""
    return [
        {"prompt": entry["prompt"], "gold": entry} | _pair_images(folder, entry["index"])
        for entry in _read(folder / "samples.json") or []
    ]


def _pair_images(folder: Path, index: int) -> dict[str, str]:
    clips = folder / f"{index:03d}.webp"
    if clips.is_file():
        return {"clips": _animation(clips), "sheet": _sheet(clips)}
    return {f"{side}_image": _image(folder / f"{index:03d}_{side}.png") for side in ("before", "after")}


def _clip_rows(evaluation: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the table of clips: name, before, after, gain with its interval."""
    clips = (evaluation or {}).get("clips")
    if not clips:
        return []
    rows = {f"oracle {name}": row for name, row in clips["criteria"].items()}
    rows |= {"share of moving clips": clips["moving"], "dynamic degree": clips["dynamic_degree"]}
    if "alignment" in clips:
        rows["video-text alignment, 0 to 2, simulated raters"] = clips["alignment"]
    return [{"name": name, **row} for name, row in rows.items()]


def _winners(folder: Path) -> list[dict[str, Any]]:
    """Candidates of the demo's first four prompts, with their oracle values and which one the judge prefers."""
    selections = []
    for k, entry in enumerate((_read(folder / "best_of_n.json") or [])[:4]):
        pictures = [
            {"oracle": value, "best": i == entry["best"]} | _candidate(folder / f"{k}_{i}")
            for i, value in enumerate(entry["oracle"])
        ]
        selections.append({"prompt": entry["prompt"], "pictures": pictures})
    return selections


def _candidate(path: Path) -> dict[str, str]:
    """A picture, or a clip as an animation and a contact sheet."""
    clip = path.with_suffix(".webp")
    if clip.is_file():
        return {"image": _animation(clip), "sheet": _sheet(clip)}
    return {"image": _image(path.with_suffix(".png"))}


def _animation(path: Path) -> str:
    return _uri("webp", path.read_bytes())


def _sheet(path: Path) -> str:
    """Frames of an animation in reading order, for print, reduced motion, and browsers that cannot show it."""
    with open_image(path) as image:
        frames = []
        for k in spread(getattr(image, "n_frames", 1), SHEET_FRAMES):
            image.seek(k)
            frames.append(np.asarray(image.convert("RGB")))
    sheet, buffer = contact_sheet(np.stack(frames)), io.BytesIO()
    if max(sheet.size) > LARGE:
        return _jpeg(sheet, (SHEET, SHEET))
    sheet.save(buffer, "PNG")
    return _uri("png", buffer.getvalue())


MAX_GRIDS = 12
"""Largest number of sample grids on a page. They are evenly spaced over the training."""


def _strip(folder: Path) -> dict[str, Any] | None:
    """Sample grids of an alignment run in the order of their steps, first and last included."""
    listed, files = _read(folder / "grids.json"), sorted(folder.glob("step-*.png"))
    if not (listed and files):
        return None
    num = min(MAX_GRIDS, len(files))
    chosen = [files[round(i * (len(files) - 1) / max(1, num - 1))] for i in range(num)]
    grids = [{"step": int(file.stem.removeprefix("step-")), "image": _image(file, STRIP)} for file in chosen]
    return {"prompts": listed["prompts"], "frames": listed.get("frames", 1), "grids": grids}


def _figure_list(figures: list[tuple[str, str | None]]) -> list[dict[str, str]]:
    return [{"title": title, "html": html} for title, html in figures if html]


def _gold_name(config: dict[str, Any]) -> str | None:
    """The name of an alignment run's gold standard; None for prompts without a second judge."""
    if config.get("gold_judge"):
        from rewarddance.data.prompt_task import PromptTask

        return PromptTask.gold_name
    if config.get("prompts") is not None:
        return None
    name: str = load_plugin(config.get("task", "embedded"), TASKS, "task").gold_name
    return name


def _align_figures(run: Path, gold_name: str | None) -> list[dict[str, str]]:
    metrics, config = RunFolder(run).metrics(), RunFolder(run).read()["config"]
    probe = {"probe/gold": gold_name or "", "probe/proxy": "judge's P(yes)", "probe/truth": "the task's own measure"}
    parts = {key: key.removeprefix("probe/part/") for m in metrics for key in m if key.startswith("probe/part/")}
    split = {"probe/parts_std": "standard deviation over the judges", "probe/parts_split": "share with both signs"}
    unit, label = "margin", "mean margin"
    if config.get("algorithm", "refl") == "refl":
        alone = config.get("references", {}).get("kind") == "none"
        unit, label = "P(yes)", "P(yes) of each sample alone" if alone else "P(yes) against the references"
    reward = {"reward": label, "reward_std": "its spread over the batch"}
    title = f"The judge and the gold standard ({gold_name}) on the probe" if gold_name else "The judge on the probe"
    gap = {"probe/gap": "gap, in standard deviations of the start"}
    return _figure_list(
        [
            (title, curves(metrics, probe, "mean")),
            ("Every judge of the set on the probe", curves(metrics, parts, "standardised margin")),
            ("Disagreement of the judges on the probe", curves(metrics, split, "disagreement")),
            ("Reward during training", curves(metrics, reward, unit)),
            ("KL to the frozen policy", curves(metrics, {"kl": "KL per dimension"}, "KL")),
            ("Gap: rise of the judge's reward minus rise of the gold standard", curves(metrics, gap, "gap")),
        ]
    )


def _judge_figures(run: Path) -> list[dict[str, str]]:
    metrics = RunFolder(run).metrics()
    names = {"id/accuracy": "held-out prompts", "ood/accuracy": "out of distribution", "accuracy": "training labels"}
    return _figure_list(
        [
            ("Judge: loss", curves(metrics, {"loss": "cross-entropy"}, "loss")),
            ("Judge: pairs ordered right", curves(metrics, names, "accuracy", ("accuracy",))),
        ]
    )


def _alignment(folder: Path) -> dict[str, Any]:
    """The figures of an alignment run on the page."""
    run, evaluation = RunFolder(folder).read(), _read(folder / "evaluation.json")
    gold_name = _gold_name(run["config"])
    content: dict[str, Any] = {"run": run, "evaluation": evaluation, "gold_name": gold_name}
    content |= {"clip_rows": _clip_rows(evaluation), "alarms": RunFolder(folder).alarms()}
    if evaluation:
        gains = {**evaluation["categories"], "all": evaluation["gain"]}
        content["categories"] = intervals(gains, f"gain in {gold_name}")
    pairs = _pairs(folder / ("samples" if evaluation else "samples_prompts"))
    figures = _align_figures(folder, gold_name)
    return content | {"figures": figures, "pairs": pairs, "strip": _strip(folder / "samples")}


def _render(**content: Any) -> str:
    environment = Environment(loader=PackageLoader("rewarddance.apps"), autoescape=select_autoescape())
    environment.globals["kind"] = lambda uri: "photo" if uri.startswith("data:image/jpeg") else "px"
    page: str = environment.get_template("report.html").render(plotly=get_plotlyjs(), **content)
    return page


def _demo_page(folder: Path) -> str:
    alignment, demo = _alignment(folder / "align"), _read(folder / "demo.json") or {}
    figures = [*alignment.pop("figures"), *_judge_figures(folder / "judge")]
    of_clips = demo.get("task", "t2i") != "t2i"
    return _render(
        title="RewardDance demo: clips" if of_clips else "RewardDance demo",
        summary=_read(folder / "summary.json"),
        fast=bool(demo.get("fast")),
        shown="clip" if of_clips else "picture",
        judge=_read(folder / "judge" / "evaluation.json"),
        figures=figures,
        winners=_winners(folder / "best_of_n"),
        next_steps=True,
        **alignment,
    )


def _study_page(folder: Path, name: str) -> str:
    study = _read(folder / name)
    title, tables, figures = study_content(study)
    made_with = {k: study[k] for k in ("command", "config", "git", "hardware", "packages", "python") if k in study}
    return _render(
        title=f"{title}: {folder.name}",
        tables=tables,
        figures=_figure_list(figures),
        figures_title="Figures",
        run=made_with,
    )


def _run_page(folder: Path) -> str:
    run = RunFolder(folder).read()
    title = f"{run['kind']} run {folder.name}"
    if run["kind"] == "align":
        others = {"by_judge": "evaluation_prompts.json", "by_people": "evaluation_people.json"}
        return _render(title=title, **{k: _read(folder / name) for k, name in others.items()}, **_alignment(folder))
    judge = _read(folder / "evaluation.json") if run["kind"] in ("judge", "learned") else None
    return _render(title=title, judge=judge, figures=_judge_figures(folder), run=run)
