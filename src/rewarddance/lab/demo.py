"""`rewarddance demo`: the main job on the embedded world, in minutes on two cores."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from rewarddance.align.config import AlignConfig
from rewarddance.core.errors import RunError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.memory import peak_resident_mib
from rewarddance.core.progress import say
from rewarddance.core.runs import write_json
from rewarddance.data.parquet import RecordTable
from rewarddance.evaluate.judge import measure_judge
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.data.build import build_data
from rewarddance.jobs.evaluate import evaluate_alignment
from rewarddance.jobs.load import find, load_generator, load_single_judge
from rewarddance.jobs.train import train_from_data
from rewarddance.reward.judge import Judge
from rewarddance.reward.saved import read_spec
from rewarddance.reward.train_config import RewardConfig
from rewarddance.search.best_of_n import draw_candidates, select
from rewarddance.world.build.preferences import PreferencesConfig
from rewarddance.world.task import EmbeddedTask

DEMO_SEED = 1000
"""Added to the seed, so that these preferences are not those of the shipped judge's training."""


def run_demo(out: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Build preferences, train a judge, align the generator with it, evaluate, and write the figures.

    Args:
        fast: a few steps of everything, for tests; its figures mean nothing.

    Returns:
        The content of `summary.json`.
    """
    began = time.monotonic()
    for kind in ("generator", "vlm", "judge"):
        find("tiny", kind)  # type: ignore[arg-type]  # missing weights are an error at once
    _empty(out)
    write_json(out / "demo.json", {"fast": fast, "seed": seed})
    say("1/4 preferences: samples of the generator and corrupted renders, judged by simulated raters")
    scale = 1 if fast else 5
    preferences = PreferencesConfig(seed=DEMO_SEED + seed, num_prompts=60 * scale)
    data = build_data(preferences, 8 * scale, "tiny", out / "preferences", 4 if fast else 10)
    say("2/4 judge: the shipped judge, a small VLM, is trained further on these preferences")
    train_from_data(_judge_config(data, fast, seed), out / "judge")
    judge = load_single_judge(out / "judge")
    held_out, ood = (RecordTable.open(data / f"{name}.parquet") for name in ("id", "ood"))
    accuracy = {"id": measure_judge(judge, held_out), "ood": measure_judge(judge, ood)}
    before = measure_judge(load_single_judge("tiny"), held_out)
    say("3/4 alignment: reward feedback through the judge against best-of-N references")
    align_generator(_align_config(out / "judge", fast, seed), load_generator("tiny"), judge, out / "align")
    say("4/4 evaluation: 240 held-out prompts, the same noises before and after, the exact oracle")
    evaluation = evaluate_alignment(
        out / "align",
        num_noises=1 if fast else 2,
        every=24 if fast else 1,
        diversity_prompts=4 if fast else 24,
        diversity_noises=3 if fast else 6,
    )
    summary = {
        "gain": {k: evaluation["gain"][k] for k in ("mean", "ci_low", "ci_high", "verdict")},
        "judge": {
            "accuracy_id": accuracy["id"]["accuracy"],
            "accuracy_ood": accuracy["ood"]["accuracy"],
            "before_id": before["accuracy"],
        },
        "best_of_n": _best_of_n(out / "best_of_n", judge, fast, seed),
        "hacking": evaluation["hacking"],
        "computes_in": evaluation["computes_in"],
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_mib": round(peak_resident_mib()),
    }
    write_json(out / "judge" / "evaluation.json", accuracy)
    write_json(out / "summary.json", summary)
    return summary


def _empty(out: Path) -> None:
    """Make the folder; an earlier demo in it is deleted.

    Raises:
        RunError: the folder holds something else.
    """
    if out.exists():
        if not (out / "demo.json").is_file() and any(out.iterdir()):
            raise RunError(f"{out}: exists and is not a demo; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)


def _judge_config(data: Path, fast: bool, seed: int) -> RewardConfig:
    shipped = find("tiny", "judge")
    return RewardConfig(
        seed=seed,
        data=str(data),
        backbone=str(shipped),
        temperature=read_spec(shipped).temperature,
        prompts_per_step=4 if fast else 10,
        loop=LoopConfig(num_steps=6 if fast else 30, validate_every=3 if fast else 15, save_every=1000),
        optim=OptimConfig(lr=5e-5, warmup_steps=5, schedule="cosine", ema_decay=0.95, weight_decay=0.01),
    )


def _align_config(judge: Path, fast: bool, seed: int) -> AlignConfig:
    return AlignConfig(
        seed=seed,
        judge=str(judge),
        num_prompts=8 if fast else 96,
        batch_size=4 if fast else 16,
        probe_prompts=4 if fast else 30,
        optim=OptimConfig(lr=1e-3, warmup_steps=5, ema_decay=0.95),
        loop=LoopConfig(num_steps=3 if fast else 130, validate_every=2 if fast else 43, save_every=1000),
    )


@torch.no_grad()
def _best_of_n(folder: Path, judge: Judge, fast: bool, seed: int) -> dict[str, float]:
    """Best-of-8 by the trained judge on the unaligned generator: oracle fidelity of winners and of mean candidates."""
    task = EmbeddedTask()
    prompts = [p.text for p in task.benchmark()][:: 80 if fast else 8]
    rng = torch.Generator().manual_seed(seed)
    candidates = draw_candidates(load_generator("tiny"), prompts, 8, rng, 10)
    selections = select(judge, prompts, candidates, "fidelity")
    folder.mkdir()
    entries: list[dict[str, Any]] = []
    for k, s in enumerate(selections):
        values = task.gold([s.prompt] * len(s.candidates), s.candidates, s.candidates)
        if k < 4:
            for i, m in enumerate(s.candidates):
                m.to_pil().save(folder / f"{k}_{i}.png")
        entries.append({"prompt": s.prompt, "best": s.best or 0, "oracle": values, "margin": s.margin.tolist()})
    write_json(folder / "best_of_n.json", entries)
    winners = sum(x["oracle"][x["best"]] for x in entries) / len(entries)
    return {"winner": winners, "mean": sum(sum(x["oracle"]) / 8 for x in entries) / len(entries)}
