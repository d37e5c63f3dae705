"""`rewarddance study search`: do searches at inference beat best-of-N at the same number of forward passes?

Every cell is one search with one verifier, one budget and one seed on all prompts. The oracle measures the winners; as
a verifier it shows the upper bound of what a judge could find.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from rewarddance.core.config import Config
from rewarddance.core.errors import ConfigError
from rewarddance.core.lock import folder_lock
from rewarddance.core.media import StoredMedia
from rewarddance.core.progress import progress
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import environment, same_settings, write_json
from rewarddance.core.statistics import bootstrap, paired_bootstrap
from rewarddance.core.task import Gold, Prompt, Request, Task
from rewarddance.evaluate.generator import Samples, diversity
from rewarddance.jobs.evaluate import held_out_prompts, task_features
from rewarddance.jobs.load import find, load_generator, load_judge, load_task, weights_id
from rewarddance.lab.study_tables import as_markdown, search_tables
from rewarddance.reward.composite import AnyJudge
from rewarddance.search.anchors import verifier_of
from rewarddance.search.config import (
    BestOfNConfig,
    EvolutionConfig,
    FkConfig,
    PathsConfig,
    SearchConfig,
    VerifierConfig,
    ZeroOrderConfig,
)
from rewarddance.search.methods import run_search
from rewarddance.search.run import BudgetError, Result
from rewarddance.search.verifier import ByGold, Verifier, answers_alone

Asked = Literal["pointwise", "anchor", "round_robin", "oracle"]
ONE = "one sample"
BASELINE = "best_of_n"
"""The search that the others are compared with."""


class SearchStudyConfig(Config):
    """The searches, verifiers and budgets that are compared."""

    judge: str = "tiny"
    generator: str = "tiny"
    task: str = "embedded"
    """Where the prompts and the oracle come from; `embedded-video` and
    `embedded-image-to-video` for clips."""
    searches: dict[str, SearchConfig] = {
        BASELINE: BestOfNConfig(),
        "paths": PathsConfig(),
        "zero_order": ZeroOrderConfig(),
        "fk": FkConfig(),
        "evolution": EvolutionConfig(),
    }
    """Settings by a name for the table."""
    verifiers: tuple[Asked, ...] = ()
    """The ways to ask the judge, and `oracle`. Without any: `anchor`, `oracle`, and `pointwise` if the judge answers
    that question."""
    nfe: tuple[int, ...] = (50, 100, 200, 400, 800)
    seeds: tuple[int, ...] = (0, 1)
    """With two or more, the study measures the diversity of the winners across seeds."""
    num_steps: int = Field(10, ge=1)
    guidance: float = Field(1.0, ge=0)
    """Classifier-free guidance scale; 1 is off. With guidance a step counts two forward passes."""
    split: Literal["benchmark", "development"] = "benchmark"
    """`development` has other held-out prompts, for choosing settings."""
    every: int = Field(5, ge=1)
    """Take every n-th of the prompts."""
    prompts_at_once: int = Field(12, ge=1)
    """Prompts of a cell that are searched and saved together."""


def prompts_of(config: SearchStudyConfig) -> list[Prompt]:
    """The prompts of a study."""
    return list(held_out_prompts(load_task(config.task), config.split)[:: config.every])


def _gold_of(task: Task) -> Gold:
    if task.gold is None:
        raise ConfigError(f"study search: task {task.name} has no gold standard")
    return task.gold


def study_search(config: SearchStudyConfig, out: Path) -> dict[str, Any]:
    """Compute the cells that are missing under `out`, and write `study.json` and `table.md`.

    Several processes may work in one folder; each takes cells that no other process works on.

    Raises:
        ConfigError: the judge cannot answer the question of a verifier, or the generator does not fit the task.
        RunError: the folder was made with other settings.
    """
    judge, generator = load_judge(config.judge), load_generator(config.generator, guidance=config.guidance)
    load_task(config.task).check(generator.drawn)
    config = config.model_copy(update={"verifiers": _verifiers(config, judge)})
    prompts = prompts_of(config)
    shared = ("num_steps", "guidance", "split", "every", "prompts_at_once")
    settings: dict[str, Any] = {k: getattr(config, k) for k in shared}
    settings |= {f"search {name}": search.model_dump(mode="json") for name, search in config.searches.items()}
    settings["judge_sha256"] = weights_id(find(config.judge, "judge"))
    settings["generator_sha256"] = weights_id(find(config.generator, "generator"))
    settings |= {"task": config.task, "fps": generator.drawn.fps}
    same_settings(out / "setting.json", settings, absent={"guidance": 1.0, "task": "embedded"})
    cells = _cells(config)
    with progress("cells") as report:
        for i, cell in enumerate(cells):
            folder = out / "cells" / _name(*cell)
            with folder_lock(folder) as locked:
                if locked:
                    _fill(folder, cell, config, prompts, judge, generator)
            report(i + 1, len(cells))
    study = {**summarise(out, config), "config": config.model_dump(mode="json"), **environment()}
    study |= {"num_prompts": len(prompts), "gold_name": load_task(config.task).gold_name}
    write_json(out / "study.json", study)
    (out / "table.md").write_text(as_markdown(search_tables(study)))
    return study


Cell = tuple[str, str, int, int]
"""A cell: verifier, search, NFE, seed."""


def _cells(config: SearchStudyConfig) -> list[Cell]:
    """Small budgets come first, so that a stopped study has whole rows."""
    first: list[Cell] = [("oracle", ONE, config.num_steps, seed) for seed in config.seeds]
    return first + [
        (verifier, name, nfe, seed)
        for nfe in sorted(config.nfe)
        for seed in config.seeds
        for verifier in config.verifiers
        for name in config.searches
    ]


def _name(verifier: str, search: str, nfe: int, seed: int) -> str:
    return f"{verifier}-{search.replace(' ', '_')}-{nfe}-{seed}"


def _verifiers(config: SearchStudyConfig, judge: AnyJudge) -> tuple[Asked, ...]:
    alone = answers_alone(judge)
    if "pointwise" in config.verifiers and not alone:
        raise ConfigError(f"study search: {config.judge} does not answer the pointwise question")
    return config.verifiers or (*(("pointwise",) if alone else ()), "anchor", "oracle")


def _fill(
    folder: Path, cell: Cell, config: SearchStudyConfig, prompts: list[Prompt], judge: AnyJudge, generator: Tunable
) -> None:
    """Write what is missing of a cell: figures and pictures of every part of the prompts."""
    verifier_name, name, nfe, seed = cell
    gold = _gold_of(load_task(config.task))
    search, budget = (BestOfNConfig(), nfe * generator.passes) if name == ONE else (config.searches[name], nfe)
    for start in range(0, len(prompts), config.prompts_at_once):
        target = folder / f"{start:03d}.json"
        if target.is_file():
            continue
        part = prompts[start : start + config.prompts_at_once]
        began = time.monotonic()
        try:
            verifier = _verifier(verifier_name, gold, judge, generator, part, config.num_steps, seed)
            results = run_search(
                generator, verifier, part, nfe=budget, num_steps=config.num_steps, seed=seed, settings=search
            )
        except BudgetError as error:
            write_json(target, {"left_out": str(error)})
            continue
        # as bytes, so that the oracle sees what a file would hold
        stored = torch.stack([r.picture.to_bytes() for r in results])
        save_file({"pictures": stored.squeeze(1)}, target.with_suffix(".safetensors"))
        figures = _figures(part, results, StoredMedia(stored, generator.drawn.fps), gold)
        write_json(target, figures | {"seconds": round(time.monotonic() - began, 1)})


def _verifier(
    verifier_name: str,
    gold: Gold,
    judge: AnyJudge,
    generator: Tunable,
    part: Sequence[Request],
    num_steps: int,
    seed: int,
) -> Verifier:
    if verifier_name == "oracle":
        return ByGold(gold)
    how = VerifierConfig.model_validate({"ask": verifier_name})
    return verifier_of(judge, generator, part, num_steps=num_steps, seed=seed, settings=how)


def _figures(part: Sequence[Request], results: Sequence[Result], stored: StoredMedia, gold: Gold) -> dict[str, Any]:
    """Figures of each prompt; the score is None if every judgement was refused."""
    return {
        "prompts": [r.prompt for r in results],
        "gold": gold(part, stored, stored),
        "score": [None if np.isnan(r.score) else r.score for r in results],
        **{k: [getattr(r, k) for r in results] for k in ("nfe", "decodes", "judge_calls", "refused")},
    }


def summarise(out: Path, config: SearchStudyConfig) -> dict[str, Any]:
    """Figures of the cells that are finished for all seeds.

    Returns:
        one_sample: the gold standard of a single sample. rows: for every verifier, search and budget the oracle's value
        with its interval over prompts, the difference to best-of-N with the same verifier and budget, the verifier's
        score, and the mean costs of a prompt. left_out: why a search has no figure.
    """
    num = len(prompts_of(config))
    one = _read(out, config, "oracle", ONE, config.num_steps, num)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for verifier in config.verifiers:
        for nfe in sorted(config.nfe):
            base = _read(out, config, verifier, BASELINE, nfe, num)
            for name in config.searches:
                figures = _read(out, config, verifier, name, nfe, num)
                if isinstance(figures, str):
                    left_out[_name(verifier, name, nfe, 0).rsplit("-", 1)[0]] = figures
                    continue
                row = {"verifier": verifier, "search": name, "budget": nfe} | _row(figures, verifier)
                if name != BASELINE and not isinstance(base, str):
                    row["minus_best_of_n"] = paired_bootstrap(figures["gold"], base["gold"]).as_dict()
                if len(config.seeds) > 1:
                    row["diversity"] = _spread(out, config, verifier, name, nfe, figures["prompts"])
                rows.append(row)
    start = None if isinstance(one, str) else bootstrap(one["gold"]).as_dict()
    return {"one_sample": start, "rows": rows, "left_out": left_out}


def _row(figures: Mapping[str, Any], verifier: str) -> dict[str, Any]:
    row: dict[str, Any] = {"gold": bootstrap(figures["gold"]).as_dict()}
    answered = figures["score"][np.isfinite(figures["score"]).all(1)]
    if verifier != "round_robin" and len(answered):  # scores of a round robin hold within one group
        row["score"] = bootstrap(answered).as_dict()
    return row | {k: float(figures[k].mean()) for k in ("nfe", "decodes", "judge_calls", "refused", "seconds")}


def _read(
    out: Path, config: SearchStudyConfig, verifier: str, name: str, nfe: int, num_prompts: int
) -> dict[str, Any] | str:
    """Figures of one search as arrays (prompts, seeds); if it has none, the reason."""
    by_seed: list[dict[str, list[Any]]] = []
    for seed in config.seeds:
        columns: dict[str, list[Any]] = {}
        parts = sorted((out / "cells" / _name(verifier, name, nfe, seed)).glob("*.json"))
        for content in (json.loads(p.read_text()) for p in parts):
            if "left_out" in content:
                return str(content["left_out"])
            seconds = content.pop("seconds") / len(content["prompts"])
            for key, values in (content | {"seconds": [seconds] * len(content["prompts"])}).items():
                columns.setdefault(key, []).extend(values)
        by_seed.append(columns)
    if {len(columns.get("prompts", ())) for columns in by_seed} != {num_prompts}:
        return "not finished"
    figures: dict[str, Any] = {k: np.array([c[k] for c in by_seed], np.float64).T for k in by_seed[0] if k != "prompts"}
    return figures | {"prompts": by_seed[0]["prompts"]}


def _spread(
    out: Path, config: SearchStudyConfig, verifier: str, name: str, nfe: int, prompts: Sequence[str]
) -> dict[str, float]:
    """Mean distance of the winners of different seeds."""
    frames = []
    for seed in config.seeds:
        parts = sorted((out / "cells" / _name(verifier, name, nfe, seed)).glob("*.safetensors"))
        frames.append(torch.cat([load_file(p)["pictures"] for p in parts]))
    fps = json.loads((out / "setting.json").read_text()).get("fps")
    media = tuple(StoredMedia(x, fps) for x in torch.stack(frames, 1))
    return diversity(Samples(tuple(prompts), media), task_features(load_task(config.task)))
