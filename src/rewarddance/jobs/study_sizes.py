"""`rewarddance study sizes`: the whole ladder for one table. Every size is pretrained and taught on the same data.

A study of hours, so it goes on where it was stopped; what did not fit the budget is left empty and said so.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from rewarddance.core.config import Config, differing
from rewarddance.core.errors import ConfigError, RunError, StoppedError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.parallel import any_of, is_leader, wait_for_all
from rewarddance.core.progress import console
from rewarddance.core.runs import RunFolder, environment, write_json
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.build.vision import VisionConfig, train_vision
from rewarddance.jobs.build.vlm import VlmConfig, save_vlm, train_vlm
from rewarddance.jobs.load import load_internvl
from rewarddance.jobs.study_judges import measured_judge
from rewarddance.jobs.study_table import table
from rewarddance.jobs.train import warn_of_labels
from rewarddance.jobs.train_reward_config import RewardConfig
from rewarddance.vlm.grow import grow
from rewarddance.vlm.tiny import SIZES

VLM_STEPS = VlmConfig().loop.num_steps


class SizesConfig(Config):
    """Steps of the three trainings, the same for every size; rates go down with the width (`scaled`)."""

    sizes: tuple[str, ...] = ("tiny-2m", "tiny-20m", "tiny-200m")
    vision_steps: int = Field(1500, ge=1)
    vlm_steps: int = Field(VLM_STEPS, ge=0)
    grow_from: str | None = None
    """A VLM of the embedded class that every size begins from, grown to its widths and depths without a change of what
    it computes (`vlm/grow.py`), in place of the first training; `vlm_steps` then come on top and may be 0."""
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
    if config.judge.patience:
        raise ConfigError("patience: a study keeps nothing apart to stop early by; leave it 0")
    if config.grow_from is None and not config.vlm_steps:
        raise ConfigError("vlm_steps 0: a VLM without lessons is only of use where it begins from one (grow_from)")
    deadline = time.monotonic() + budget
    warn_of_labels(RecordTable.open(data / "train.parquet"))
    _same_study(config, out / "setting.json")
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
    """Write the setting down, or make sure that it is the one of what is there already."""
    known = target.is_file()
    wait_for_all()  # every process has looked before the first one writes
    if not known:
        if is_leader():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_json(target, config.model_dump(mode="json"))
        return
    different = differing(json.loads(target.read_text()), config, but_for={"": {"sizes"}})
    if different:
        raise RunError(f"{target.parent}: was made with another configuration ({', '.join(different)})")


class OutOfTime(Exception):
    """The budget ended; says where."""


def _one(config: SizesConfig, size: str, data: Path, folder: Path, deadline: float) -> dict[str, Any]:
    """One row of the table: pretraining and judge of a size, as far as they are not there already."""
    backbone, trained = _pretrained(config, size, data / "train.parquet", folder, deadline)
    told = {"backbone": str(backbone), "data": str(data), "seed": config.seed}
    judge = config.judge.model_copy(update={**told, "optim": scaled(config.judge.optim, SIZES[size].text_width)})
    measured = (folder / "judge" / "measured.json").is_file()
    if _over(deadline) and not measured:
        raise OutOfTime("the budget ended before the judge's training")
    left = judge.loop.model_copy(update={"max_seconds": max(1.0, deadline - time.monotonic())})
    try:
        found = measured_judge(judge.model_copy(update={"loop": left}), folder / "judge", size)
    except StoppedError as error:
        if not _over(deadline):
            raise  # told to stop
        raise OutOfTime(f"judge: {error}") from None
    return {**found, "pretrain_seconds": sum(RunFolder(f).metrics()[-1]["seconds"] for f in trained)}


def _pretrained(
    config: SizesConfig, size: str, drawn: Path, folder: Path, deadline: float
) -> tuple[Path, Sequence[Path]]:
    """The folder of a VLM of this size, and the runs that made it."""
    vision, grown, vlm, wide = folder / "vision", folder / "grown", folder / "vlm", SIZES[size]
    speaking = VlmConfig(size=size, seed=config.seed)
    drawn_from = round(speaking.drawn_from * config.vlm_steps / VLM_STEPS)  # at the same point of a shorter run
    weights, trained = None, [vlm]
    if config.grow_from is None:
        seeing = _for_width(VisionConfig(size=size, seed=config.seed), wide.vision_width, config.vision_steps)
        _phase("vision", seeing, vision, deadline, lambda c, resume: train_vision(c, vision, resume=resume))
        weights, trained = vision / "model" / "vision.safetensors", [vision, vlm]
    else:
        _grown(config.grow_from, size, grown)
        speaking, drawn_from = speaking.model_copy(update={"start": str(grown)}), 0  # it has seen renders
        if not config.vlm_steps:
            return grown, []
    speaking = _for_width(speaking.model_copy(update={"drawn_from": drawn_from}), wide.text_width, config.vlm_steps)
    _phase("vlm", speaking, vlm, deadline, lambda c, resume: train_vlm(c, weights, vlm, drawn=drawn, resume=resume))
    return vlm / "model", trained


def _grown(start: str, size: str, target: Path) -> None:
    """Write `start` in another size to `target`, once."""
    done = (target / "preprocessor_config.json").is_file()  # written last
    wait_for_all()  # every process has looked before the first one writes
    if not done and is_leader():
        found = load_internvl(start, "cpu")
        save_vlm(grow(found.model, size, found.tokenizer), found.tokenizer, found.prepare, target)
    wait_for_all()


def _over(deadline: float) -> bool:
    """Whether the time is over for any process: all of them then end together."""
    return any_of(time.monotonic() > deadline)


Pretraining = TypeVar("Pretraining", VisionConfig, VlmConfig)


def _for_width(config: Pretraining, width: int, num_steps: int) -> Pretraining:
    loop = LoopConfig(num_steps=num_steps, log_every=10, validate_every=500, save_every=200, save_seconds=300)
    return config.model_copy(update={"optim": scaled(config.optim, width), "loop": loop})


def scaled(optim: OptimConfig, width: int) -> OptimConfig:
    """The smallest size's learning rate for a wider tower, so that updates change what layers say as much as there.

    AdamW's updates are nearly of one direction, so that their effect grows with the width (Yang et al. 2022, Tensor
    Programs V, Table 8); Muon's are orthogonal at a fixed root mean square, so that theirs grows with its square root.
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
        RunError: what is there was made with another configuration.
    """
    begun, finished = (folder / "run.json").is_file(), any((folder / "model").rglob("*.safetensors"))
    over = _over(deadline)  # every process has looked before the first one writes
    if begun:
        RunFolder(folder).must_be(kind, config)
    if finished:
        return
    if over:
        raise OutOfTime(f"the budget ended before {folder.name}")
    left = max(1.0, deadline - time.monotonic())
    try:
        train(config.model_copy(update={"loop": config.loop.model_copy(update={"max_seconds": left})}), begun)
    except StoppedError as error:
        if not _over(deadline):
            raise  # told to stop
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
