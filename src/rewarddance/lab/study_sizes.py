"""`rewarddance study sizes`: every size of the embedded VLM is pretrained and taught to judge, on the same data.

The study takes hours. It continues where it was stopped. Sizes that do not fit the time budget are left empty.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from rewarddance.core.config import Config
from rewarddance.core.errors import ConfigError, StoppedError
from rewarddance.core.loop_config import LoopConfig
from rewarddance.core.parallel import any_process, barrier, is_leader
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder, same_settings
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.cross_validate import cross_validate, folds_by_prompt
from rewarddance.jobs.load import load_internvl
from rewarddance.jobs.train import warn_of_labels
from rewarddance.lab.study_judges import measured_judge, write_study
from rewarddance.reward.train_config import RewardConfig
from rewarddance.world.build.grow import grow_vlm
from rewarddance.world.build.large_batches import SHIPPED_STEPS, scaled, vision_settings, vlm_settings
from rewarddance.world.build.tiny_vlm import SIZES
from rewarddance.world.build.vision import VisionConfig, pretrain_vision
from rewarddance.world.build.vlm import save_vlm, train_vlm
from rewarddance.world.build.vlm_config import VlmConfig

DEVIATIONS = ("accuracy", "label_accuracy", "spearman")
"""Figures whose standard deviation over seeds and over folds is reported."""


class SizesConfig(Config):
    """Steps of the three trainings, equal for all sizes. Learning rates fall with the width (`scaled`)."""

    sizes: tuple[str, ...] = ("tiny-2m", "tiny-20m", "tiny-200m")
    pretrained: dict[str, str] = {}
    """Folders of pretrained VLMs by size, which replace both pretrainings of those sizes: run folders of
    `rewarddance build --size`, or folders in Hugging Face layout."""
    vision_steps: int = Field(1500, ge=1)
    vlm_steps: int = Field(SHIPPED_STEPS, ge=0)
    large_batches: bool = False
    """Pretraining in large batches, for a GPU (`world/build/large_batches.py`)."""
    grow_from: str | None = None
    """A VLM of the embedded class from which all sizes are grown (`world/build/grow.py`). It replaces the training of
    the vision tower. `vlm_steps` are then further steps and may be 0."""
    judge: RewardConfig = RewardConfig()
    seed: int = 0
    """Of the pretraining, of the folds, and of the first judge."""
    num_seeds: int = Field(1, ge=1)
    """Judges of each size, with seeds from `seed` on. They start from one VLM."""
    folds: int = Field(0, ge=0)
    """Folds of a cross-validation of each size on the training data; 0 for none."""
    device: str = "auto"
    """Of the pretraining. Judges take CUDA where there is one."""
    workers: int | None = None
    """Processes that make lessons ahead (`core.prefetch.num_workers`)."""


def study_sizes(config: SizesConfig, data: Path, out: Path, budget: float) -> dict[str, Any]:
    """Train and measure every size under `out`, within `budget` seconds of this call.

    Args:
        data: a folder with `train.parquet`, `id.parquet` and `ood.parquet`. The VLMs learn from its generated pictures
            (`world/build/lesson_batches.py`), the judges from its choices.

    Returns:
        Figures by size, with their deviations (`deviations_of`); for unfinished sizes, where the budget ended. Also in
        `out/study.json` and `out/table.md`.
    """
    if config.judge.patience:
        raise ConfigError("patience: a study has no set for early stopping; leave it 0")
    if config.grow_from is None and not config.vlm_steps and set(config.sizes) - set(config.pretrained):
        raise ConfigError("vlm_steps 0: a VLM without lessons needs another one to start from (grow_from)")
    if config.folds == 1:
        raise ConfigError("folds 1: a cross-validation needs two or more, or 0 for none")
    deadline = time.monotonic() + budget
    warn_of_labels(RecordTable.open(data / "train.parquet"))
    if is_leader():
        free = frozenset({"sizes", "num_seeds", "folds", "device", "workers"})
        same_settings(out / "setting.json", {}, config, free=free)
    barrier()
    entries: dict[str, Any] = {}
    unfinished: dict[str, str] = {}
    for size in config.sizes:
        try:
            entries[size] = _one_size(config, size, data, out / size, deadline)
        except OutOfTime as stopped:
            unfinished[size] = str(stopped)
            say(f"{size}: {stopped}")
    return write_study({"sizes": entries, "unfinished": unfinished}, config, out)


class OutOfTime(Exception):
    """The budget ended; the message says where."""


def _one_size(config: SizesConfig, size: str, data: Path, folder: Path, deadline: float) -> dict[str, Any]:
    """One entry of the study. Trains the parts of a size that are not finished."""
    backbone, trained = _pretrained(config, size, data / "train.parquet", folder, deadline)
    optim = scaled(config.judge.optim, SIZES[size].text_width)
    changes = {"backbone": str(backbone), "data": str(data), "optim": optim}
    judge = config.judge.model_copy(update=changes)
    seconds = sum(RunFolder(f).metrics()[-1]["seconds"] for f in trained)
    rows = []
    for seed in range(config.seed, config.seed + config.num_seeds):
        target = folder / ("judge" if seed == config.seed else f"judge-{seed}")
        if _over(deadline) and not (target / "measured.json").is_file():
            raise OutOfTime("the budget ended before the judge's training")
        with _within(deadline, judge.loop, target.name) as loop:
            seeded = judge.model_copy(update={"loop": loop, "seed": seed})
            rows.append({**measured_judge(seeded, target, f"{size}, seed {seed}"), "pretrain_seconds": seconds})
    entry: dict[str, Any] = {"parameters": rows[0]["parameters"], "seeds": rows}
    if config.folds:
        entry["folds"] = _folds(config, judge, data, folder / "folds", deadline)
    return entry | {"deviations": deviations_of(entry)}


def _folds(config: SizesConfig, judge: RewardConfig, data: Path, folder: Path, deadline: float) -> dict[str, Any]:
    """Figures of every fold, by name."""
    table = RecordTable.open(data / "train.parquet")
    folds = folds_by_prompt(table.prompts, config.folds, config.seed)
    missing = not all((folder / re.sub(r"[^\w.-]+", "_", f.name) / "measured.json").is_file() for f in folds)
    if _over(deadline) and missing:
        raise OutOfTime("the budget ended before the cross-validation")
    with _within(deadline, judge.loop, folder.name) as loop:
        result = cross_validate(judge.model_copy(update={"loop": loop, "seed": config.seed}), folds, table, folder)
    figures: dict[str, Any] = result["folds"]
    return figures


def deviations_of(entry: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and sample standard deviation of a size's figures.

    Returns:
        `seeds` and `folds`, where there are two or more: by figure (with the split before it for seeds) `mean`, `std`.
    """
    by_seed = {
        f"{split}/{name}": [row.get(split, {}).get(name) for row in entry["seeds"]]
        for split in ("id", "ood")
        for name in DEVIATIONS
    }
    by_fold = {name: [fold.get(name) for fold in entry.get("folds", {}).values()] for name in DEVIATIONS}
    return {
        kind: {
            name: {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
            for name, values in figures.items()
            if len(values) > 1 and None not in values
        }
        for kind, figures in (("seeds", by_seed), ("folds", by_fold))
    }


def _pretrained(
    config: SizesConfig, size: str, drawn: Path, folder: Path, deadline: float
) -> tuple[Path, Sequence[Path]]:
    """The folder of a VLM of this size, and the runs that made it."""
    if size in config.pretrained:
        return _ready(size, Path(config.pretrained[size]))
    vision, grown, vlm, steps = folder / "vision", folder / "grown", folder / "vlm", config.vlm_steps
    keys = {k: getattr(config, k) for k in ("seed", "device", "workers")}
    lessons = vlm_settings(size, steps, config.large_batches, **keys)
    weights, trained = None, [vlm]
    if config.grow_from is None:
        seeing = vision_settings(size, config.vision_steps, config.large_batches, **keys)
        _phase("vision", seeing, vision, deadline, lambda c, resume: pretrain_vision(c, vision, resume=resume))
        weights, trained = vision / "model" / "vision.safetensors", [vision, vlm]
    else:
        _grow_once(config.grow_from, size, grown)
        lessons = lessons.model_copy(
            update={"start": str(grown), "drawn_from": 0}
        )  # it has learnt from renders already
        if not steps:
            return grown, []
    _phase("vlm", lessons, vlm, deadline, lambda c, resume: train_vlm(c, weights, vlm, drawn=drawn, resume=resume))
    return vlm / "model", trained


def _ready(size: str, folder: Path) -> tuple[Path, Sequence[Path]]:
    """A pretrained VLM of this size, and its training runs, if they are beside it.

    Raises:
        ConfigError: no such VLM, or one of another size.
    """
    model = load_internvl(folder, "cpu").model.config
    shape, expected = (model.text_config.hidden_size, model.text_config.num_hidden_layers), SIZES[size]
    if shape != (expected.text_width, expected.text_layers):
        raise ConfigError(
            f"{folder}: a language model of {shape[1]} layers of {shape[0]} units, but {size} has "
            f"{expected.text_layers} of {expected.text_width}"
        )
    runs = [f for f in (folder.parent / "vision", folder) if (f / "metrics.jsonl").is_file()]
    return (folder / "model" if (folder / "model").is_dir() else folder), runs


def _grow_once(start: str, size: str, target: Path) -> None:
    """Write `start` in another size to `target`, unless it is there."""
    done = (target / "preprocessor_config.json").is_file()  # written last
    barrier()  # the leader writes only after all processes have checked the folder
    if not done and is_leader():
        small = load_internvl(start, "cpu")
        save_vlm(grow_vlm(small.model, size, small.tokenizer), small.tokenizer, small.prepare, target)
    barrier()


def _over(deadline: float) -> bool:
    """Whether the time is over in any process, so that all processes end together."""
    return any_process(time.monotonic() > deadline)


Pretraining = TypeVar("Pretraining", VisionConfig, VlmConfig)


def _phase(
    kind: str,
    config: Pretraining,
    folder: Path,
    deadline: float,
    train: Callable[[Pretraining, bool], Path],
) -> None:
    """One pretraining, unless it is finished.

    Raises:
        RunError: the run there was made with another configuration.
    """
    started, finished = (folder / "run.json").is_file(), any((folder / "model").rglob("*.safetensors"))
    over = _over(deadline)  # an all_reduce, so the leader writes only after all processes have checked the folder
    if started:
        RunFolder(folder).must_be(kind, config)
    if finished:
        return
    if over:
        raise OutOfTime(f"the budget ended before {folder.name}")
    with _within(deadline, config.loop, folder.name) as loop:
        train(config.model_copy(update={"loop": loop}), started)


@contextmanager
def _within(deadline: float, loop: LoopConfig, name: str) -> Iterator[LoopConfig]:
    """The loop's configuration with the time that is left.

    Raises:
        OutOfTime: the training was stopped by the deadline. A stop by a signal stays a `StoppedError`.
    """
    try:
        yield loop.model_copy(update={"max_seconds": max(1.0, deadline - time.monotonic())})
    except StoppedError as error:
        if not _over(deadline):
            raise
        raise OutOfTime(f"{name}: {error}") from None
