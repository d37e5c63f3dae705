"""`rewarddance study sizes`: every size of the embedded VLM is pretrained and taught to judge, on the same data.

The study takes hours. It continues where it was stopped. Sizes that do not fit the time budget are left empty.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from rewarddance.core.config import Config
from rewarddance.core.errors import ConfigError, StoppedError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.parallel import any_process, barrier, is_leader
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder, same_settings
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.load import load_internvl
from rewarddance.jobs.train import warn_of_labels
from rewarddance.lab.study_judges import measured_judge, write_study
from rewarddance.reward.train_config import RewardConfig
from rewarddance.world.build.grow import grow_vlm
from rewarddance.world.build.tiny_vlm import SIZES
from rewarddance.world.build.vision import VisionConfig, pretrain_vision
from rewarddance.world.build.vlm import VlmConfig, save_vlm, train_vlm

VLM_STEPS = VlmConfig().loop.num_steps


class SizesConfig(Config):
    """Steps of the three trainings, equal for all sizes. Learning rates fall with the width (`scaled`)."""

    sizes: tuple[str, ...] = ("tiny-2m", "tiny-20m", "tiny-200m")
    vision_steps: int = Field(1500, ge=1)
    vlm_steps: int = Field(VLM_STEPS, ge=0)
    grow_from: str | None = None
    """A VLM of the embedded class from which all sizes are grown (`world/build/grow.py`). It replaces the training of
    the vision tower. `vlm_steps` are then further steps and may be 0."""
    judge: RewardConfig = RewardConfig()
    seed: int = 0


def study_sizes(config: SizesConfig, data: Path, out: Path, budget: float) -> dict[str, Any]:
    """Train and measure every size under `out`, within `budget` seconds of this call.

    Args:
        data: a folder with `train.parquet`, `id.parquet` and `ood.parquet`. The VLMs learn from its generated pictures
            (`world/build/lesson_batches.py`), the judges from its choices.

    Returns:
        Figures by size; for unfinished sizes, where the budget ended. Also in `out/study.json` and `out/table.md`.
    """
    if config.judge.patience:
        raise ConfigError("patience: a study has no set for early stopping; leave it 0")
    if config.grow_from is None and not config.vlm_steps:
        raise ConfigError("vlm_steps 0: a VLM without lessons needs another one to start from (grow_from)")
    deadline = time.monotonic() + budget
    warn_of_labels(RecordTable.open(data / "train.parquet"))
    if is_leader():
        same_settings(out / "setting.json", {}, config, free=frozenset({"sizes"}))
    barrier()
    entries: dict[str, Any] = {}
    unfinished: dict[str, str] = {}
    for size in config.sizes:
        try:
            row = _one_size(config, size, data, out / size, deadline)
            entries[size] = {"parameters": row["parameters"], "seeds": [row]}
        except OutOfTime as stopped:
            unfinished[size] = str(stopped)
            say(f"{size}: {stopped}")
    return write_study({"sizes": entries, "unfinished": unfinished}, config, out)


class OutOfTime(Exception):
    """The budget ended; the message says where."""


def _one_size(config: SizesConfig, size: str, data: Path, folder: Path, deadline: float) -> dict[str, Any]:
    """One row of the table. Trains the parts of a size that are not finished."""
    backbone, trained = _pretrained(config, size, data / "train.parquet", folder, deadline)
    changes = {"backbone": str(backbone), "data": str(data), "seed": config.seed}
    judge = config.judge.model_copy(update={**changes, "optim": scaled(config.judge.optim, SIZES[size].text_width)})
    measured = (folder / "judge" / "measured.json").is_file()
    if _over(deadline) and not measured:
        raise OutOfTime("the budget ended before the judge's training")
    with _within(deadline, judge.loop, "judge") as loop:
        figures = measured_judge(judge.model_copy(update={"loop": loop}), folder / "judge", size)
    return {**figures, "pretrain_seconds": sum(RunFolder(f).metrics()[-1]["seconds"] for f in trained)}


def _pretrained(
    config: SizesConfig, size: str, drawn: Path, folder: Path, deadline: float
) -> tuple[Path, Sequence[Path]]:
    """The folder of a VLM of this size, and the runs that made it."""
    vision, grown, vlm, wide = folder / "vision", folder / "grown", folder / "vlm", SIZES[size]
    lessons = VlmConfig(size=size, seed=config.seed)
    drawn_from = round(lessons.drawn_from * config.vlm_steps / VLM_STEPS)  # the same share of a shorter run
    weights, trained = None, [vlm]
    if config.grow_from is None:
        seeing = _for_width(VisionConfig(size=size, seed=config.seed), wide.vision_width, config.vision_steps)
        _phase("vision", seeing, vision, deadline, lambda c, resume: pretrain_vision(c, vision, resume=resume))
        weights, trained = vision / "model" / "vision.safetensors", [vision, vlm]
    else:
        _grow_once(config.grow_from, size, grown)
        lessons, drawn_from = lessons.model_copy(update={"start": str(grown)}), 0  # it has learnt from renders already
        if not config.vlm_steps:
            return grown, []
    lessons = _for_width(lessons.model_copy(update={"drawn_from": drawn_from}), wide.text_width, config.vlm_steps)
    _phase("vlm", lessons, vlm, deadline, lambda c, resume: train_vlm(c, weights, vlm, drawn=drawn, resume=resume))
    return vlm / "model", trained


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


def _for_width(config: Pretraining, width: int, num_steps: int) -> Pretraining:
    loop = LoopConfig(num_steps=num_steps, log_every=10, validate_every=500, save_every=200, save_seconds=300)
    return config.model_copy(update={"optim": scaled(config.optim, width), "loop": loop})


def scaled(optim: OptimConfig, width: int) -> OptimConfig:
    """The smallest size's learning rate for a wider tower, scaled so that updates change outputs by the same amount.

    AdamW's updates are nearly of rank one, so their effect grows with the width (Yang et al. 2022, Tensor Programs V,
    Table 8). Muon's are orthogonal with a fixed root mean square, so their effect grows with the square root of it.
    """
    ratio = SIZES["tiny-2m"].text_width / width
    return optim.model_copy(update={"lr": optim.lr * (math.sqrt(ratio) if optim.name == "muon" else ratio)})


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
