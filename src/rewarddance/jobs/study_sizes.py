"""`rewarddance study sizes`: the whole ladder for one table. Every size is pretrained and taught on the same data.

A study of hours, so it goes on where it was stopped; what did not fit the budget is left empty and said so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from rewarddance.core.config import Config, differing
from rewarddance.core.errors import RunError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.parallel import is_leader
from rewarddance.core.progress import console
from rewarddance.core.runs import environment, write_json
from rewarddance.jobs.build.vision import VisionConfig, train_vision
from rewarddance.jobs.build.vlm import VlmConfig, train_vlm
from rewarddance.jobs.study_judges import measured_judge, table
from rewarddance.jobs.train_reward_config import RewardConfig
from rewarddance.vlm.tiny import SIZES

VLM_STEPS = VlmConfig().loop.num_steps


class SizesConfig(Config):
    """Steps of the three trainings, the same for every size; rates go down with the width (`scaled`)."""

    sizes: tuple[str, ...] = ("tiny-2m", "tiny-20m", "tiny-200m")
    vision_steps: int = Field(1500, ge=1)
    vlm_steps: int = Field(VLM_STEPS, ge=1)
    judge: RewardConfig = RewardConfig()
    seed: int = 0


def study_sizes(config: SizesConfig, data: Path, out: Path, budget: float) -> dict[str, Any]:
    """Train and measure every size under `out`, within `budget` seconds of this call.

    Args:
        data: a folder with `train.parquet`, `id.parquet` and `ood.parquet`; the VLMs learn from its generated pictures
            too (`jobs/build/lesson_batches.py`), the judges from its choices.

    Returns:
        Figures by size; for sizes that are not finished, how far they are. Also in `out/study.json` and `out/table.md`.
    """
    deadline = time.monotonic() + budget
    out.mkdir(parents=True, exist_ok=True)
    _same_study(config, out / "study.json")
    found: dict[str, Any] = {}
    unfinished: dict[str, str] = {}
    for size in config.sizes:
        try:
            row = _one(config, size, data, out / size, deadline)
            found[size] = {"parameters": row["parameters"], "seeds": [row]}
        except OutOfTime as stopped:
            unfinished[size] = str(stopped)
            console.print(f"{size}: {stopped}", highlight=False, markup=False, soft_wrap=True)
    result = {"sizes": found, "unfinished": unfinished, **environment(), "config": config.model_dump(mode="json")}
    if is_leader():
        write_json(out / "study.json", result)
        (out / "table.md").write_text(sizes_table(found, unfinished))
    return result


def _same_study(config: SizesConfig, target: Path) -> None:
    """What was measured with other steps or another judge is not this study's."""
    if not target.is_file():
        return
    before = json.loads(target.read_text())["config"]
    different = differing(before, config, but_for={"": {"sizes"}})
    if different:
        raise RunError(f"{target.parent}: was made with another configuration ({', '.join(different)})")


class OutOfTime(Exception):
    """The budget ended; says where."""


def _one(config: SizesConfig, size: str, data: Path, folder: Path, deadline: float) -> dict[str, Any]:
    vision, vlm = folder / "vision", folder / "vlm"
    wide = SIZES[size]
    optim = scaled(config.judge.optim, wide.text_width)
    told = {"backbone": str(vlm / "model"), "data": str(data), "seed": config.seed, "optim": optim}
    judge = config.judge.model_copy(update=told)
    if (folder / "judge" / "measured.json").is_file():
        return measured_judge(judge, folder / "judge", size)
    weights, drawn = vision / "model" / "vision.safetensors", data / "train.parquet"

    def see(loop: LoopConfig, resume: bool) -> Path:
        mine = VisionConfig(size=size, seed=config.seed, loop=_steps(loop, config.vision_steps))
        rate = scaled(mine.optim, wide.vision_width)
        return train_vision(mine.model_copy(update={"optim": rate}), vision, resume=resume)

    def speak(loop: LoopConfig, resume: bool) -> Path:
        mine = VlmConfig(size=size, seed=config.seed, loop=_steps(loop, config.vlm_steps))
        drawn_from = round(mine.drawn_from * config.vlm_steps / VLM_STEPS)  # at the same point of a shorter run
        told = {"drawn_from": drawn_from, "optim": scaled(mine.optim, wide.text_width)}
        return train_vlm(mine.model_copy(update=told), weights, vlm, drawn=drawn, resume=resume)

    _phase(vision, deadline, see)
    _phase(vlm, deadline, speak)
    if time.monotonic() > deadline:
        raise OutOfTime("the budget ended before the judge's training")
    left = judge.loop.model_copy(update={"max_seconds": deadline - time.monotonic()})
    try:
        return measured_judge(judge.model_copy(update={"loop": left}), folder / "judge", size)
    except RunError as error:
        raise OutOfTime(f"judge: {error}") from None


def scaled(optim: OptimConfig, width: int) -> OptimConfig:
    """The smallest size's learning rate for a wider tower: in inverse proportion (Yang et al. 2022, Table 8, Adam)."""
    return optim.model_copy(update={"lr": optim.lr * SIZES["tiny-2m"].text_width / width})


def _steps(loop: LoopConfig, num_steps: int) -> LoopConfig:
    return loop.model_copy(update={"num_steps": num_steps})


def _phase(folder: Path, deadline: float, train: Callable[[LoopConfig, bool], Path]) -> None:
    """One pretraining, unless it is finished."""
    if any((folder / "model").rglob("*.safetensors")):
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise OutOfTime(f"the budget ended before {folder.name}")
    loop = LoopConfig(log_every=10, validate_every=500, save_every=200, save_seconds=300, max_seconds=left)
    try:
        train(loop, (folder / "run.json").is_file())
    except RunError as error:
        raise OutOfTime(f"{folder.name}: {error}") from None


def sizes_table(found: dict[str, Any], unfinished: dict[str, str]) -> str:
    """The table of `study_judges`, with a line for every size that is not finished."""
    note = "".join(f"\n{size}: not finished ({why}); left empty.\n" for size, why in unfinished.items())
    return table(found) + note


def parse_sizes(names: Sequence[str]) -> tuple[str, ...]:
    """Known names of the size dial.

    Raises:
        RunError: an unknown name.
    """
    for name in names:
        if name not in SIZES:
            raise RunError(f"no size {name!r}; known: {', '.join(SIZES)}")
    return tuple(names)
