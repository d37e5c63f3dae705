"""`rewarddance study hacking`: does the alarm go off in runs that are hacked on purpose, and stay silent in sound ones?

Every seed has two runs. `hacked` has a judge from a few pairs, random references, no KL and a high learning rate.
`sound` is the recipe with the given judge. The gold standard of the probes is the exact oracle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rewarddance.align.config import AlignConfig
from rewarddance.core.config import Config
from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.lock import folder_lock
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder, environment, same_settings, write_json
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.load import find, load_generator_of, load_judge, weights_id
from rewarddance.jobs.train import train_judge
from rewarddance.reward.train_config import RewardConfig
from rewarddance.vlm.registry import load_backbone_folder
from rewarddance.world.task import EmbeddedTask

Arm = Literal["hacked", "sound"]
ARMS: tuple[Arm, ...] = ("hacked", "sound")


class HackingStudyConfig(Config):
    """How the two kinds of runs are made."""

    num_pairs: int = Field(200, ge=2)
    """Preferences that the judge of a hacked run learns from."""
    judge_steps: int = Field(60, ge=1)
    rate: float = Field(3e-3, gt=0)
    """Learning rate of the hacked runs."""
    hacked_steps: int = Field(20, ge=1)
    sound_steps: int = Field(100, ge=1)
    every: int = Field(5, ge=1)
    """Steps between probes."""
    probe_prompts: int = Field(40, ge=2)
    late: float = Field(0.03, gt=0)
    """An alarm is in time if the gold standard has fallen by at most this since its best probe."""


def study_hacking(
    study: HackingStudyConfig,
    align: AlignConfig,
    reward: RewardConfig,
    data: Path,
    out: Path,
    *,
    seeds: Sequence[int],
    arms: Sequence[Arm] = ARMS,
) -> dict[str, Any]:
    """Run what is missing under `out` and write `study.json`. Finished runs are kept, stopped ones are resumed.

    Args:
        data: a folder of `data build`, for the judges of the hacked runs.

    Returns:
        For every run where the alarm went off first, the best value of the gold standard before, its fall at the alarm
        and at the end; and counts: alarms in time among hacked runs whose gold standard fell by more than `late`, and
        false alarms among sound runs that end better than they began.
    """
    if align.prompts is not None or align.algorithm != "refl":
        raise ConfigError("study hacking: runs reward feedback on the embedded world; give no --prompts")
    out.mkdir(parents=True, exist_ok=True)
    fixed = study.model_dump(mode="json") | {"judge_sha256": weights_id(find(align.judge, "judge"))}
    fixed |= {"data_sha256": _sha256(data / "train.parquet"), "reward": reward.model_dump(mode="json")}
    same_settings(out / "setting.json", fixed, align, free=frozenset({"seed"}))
    for seed in seeds:
        for arm in arms:
            folder = out / f"{arm}-{seed}"
            with folder_lock(folder) as locked:
                if not locked:
                    say(f"{arm} seed {seed}: another process works on it")
                elif not (folder / "adapter" / "adapter.json").is_file():
                    judge = align.judge
                    if arm == "hacked":
                        judge = str(_few_pairs_judge(study, reward, data, seed, out / f"judge-{seed}"))
                    _align(_config(study, align, arm, seed, judge), folder, f"{arm} seed {seed}")
    figures = {**summarise(out, study.late), **environment(), "config": fixed}
    write_json(out / "study.json", figures)
    return figures


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); name a folder of `data build`") from None


def _config(study: HackingStudyConfig, align: AlignConfig, arm: Arm, seed: int, judge: str) -> AlignConfig:
    steps = study.hacked_steps if arm == "hacked" else study.sound_steps
    loop = align.loop.model_copy(update={"num_steps": steps, "validate_every": study.every, "save_every": steps})
    changes: dict[str, Any] = {"seed": seed, "judge": judge, "loop": loop, "probe_prompts": study.probe_prompts}
    if arm == "hacked":
        changes["references"] = align.references.model_copy(update={"kind": "random", "num_candidates": 1})
        changes["refl"] = align.refl.model_copy(update={"kl_weight": 0.0})
        changes["optim"] = align.optim.model_copy(update={"lr": study.rate})
    return align.model_copy(update=changes)


def _few_pairs_judge(study: HackingStudyConfig, reward: RewardConfig, data: Path, seed: int, folder: Path) -> Path:
    """A judge from `num_pairs` preferences of a few prompts, other prompts for every seed."""
    if (folder / "model" / "judge.json").is_file():
        return folder
    table = RecordTable.open(data / "train.parquet")
    records: list[PreferenceRecord] = []
    pairs, at = 0, (seed * study.num_pairs) % len(table)
    while pairs < study.num_pairs and len(records) < len(table):
        records.append(table[(at + len(records)) % len(table)])
        pairs += len(records[-1].choices)
    steps = study.judge_steps
    loop = reward.loop.model_copy(update={"num_steps": steps, "validate_every": steps, "save_every": steps})
    per_step = min(reward.prompts_per_step, len(records))
    config = reward.model_copy(update={"seed": seed, "loop": loop, "prompts_per_step": per_step, "temperature": 1.0})
    backbone = load_backbone_folder(find(reward.backbone, "vlm"))
    title, resume = f"judge from {pairs} pairs, seed {seed}", (folder / "run.json").is_file()
    train_judge(config, backbone, records, {"same": records}, folder, resume=resume, title=title)
    return folder


def _align(config: AlignConfig, folder: Path, title: str) -> None:
    judge = load_judge(config.judge, precision=config.precision)
    resume = (folder / "run.json").is_file()
    align_generator(config, load_generator_of(config), judge, folder, task=EmbeddedTask(), resume=resume, title=title)


def summarise(out: Path, late: float) -> dict[str, Any]:
    """Figures of the runs that are finished under `out`."""
    figures: dict[str, Any] = {"runs": {}}
    for arm in ARMS:
        for folder in sorted(out.glob(f"{arm}-*")):
            if (folder / "adapter" / "adapter.json").is_file():
                figures["runs"][folder.name] = alarm_of(RunFolder(folder).metrics())
    hacked, sound = (
        [r for name, r in figures["runs"].items() if name.startswith(arm) and r["probes"] > 1] for arm in ARMS
    )
    fallen = [r for r in hacked if r["fall_at_end"] > late]
    better = [r for r in sound if r["change"] > 0]
    in_time = [r for r in fallen if r["fall_at_alarm"] is not None and r["fall_at_alarm"] <= late]
    figures["hacked"] = {
        "runs": len(hacked),
        "gold_fell": len(fallen),
        "alarm": sum(r["alarm_step"] is not None for r in fallen),
        "alarm_in_time": len(in_time),
    }
    false = sum(r["alarm_step"] is not None for r in better)
    figures["sound"] = {"runs": len(sound), "end_better": len(better), "false_alarms": false}
    return figures


def alarm_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first alarm of a run, and the gold standard around it.

    Returns:
        alarm_step, alarm: of the first alarm, None without one; fall_at_alarm: best value so far less the value there;
        fall_at_end: best value less the last one; change: last value less the first; probes: number of probes.
    """
    probes = [m for m in metrics if m.get("probe/gold") is not None]
    gold = [float(m["probe/gold"]) for m in probes]
    first = next((i for i, m in enumerate(probes) if "alarm" in m), None)
    return {
        "alarm_step": None if first is None else probes[first]["step"],
        "alarm": None if first is None else probes[first]["alarm"],
        "fall_at_alarm": None if first is None else max(gold[: first + 1]) - gold[first],
        "fall_at_end": max(gold) - gold[-1] if gold else 0.0,
        "change": gold[-1] - gold[0] if gold else 0.0,
        "probes": len(probes),
    }
