"""`rewarddance demo`: the main job on the embedded world, in minutes on two cores."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from rewarddance.align.config import AlignConfig, ReflConfig
from rewarddance.core.device import autocast
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.memory import peak_resident_mib
from rewarddance.core.progress import console
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.data.parquet import RecordTable
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.build.preferences import PreferencesConfig
from rewarddance.jobs.data_build import build_data
from rewarddance.jobs.evaluate import evaluate_alignment, gold
from rewarddance.jobs.load import find, load_generator, load_judge
from rewarddance.jobs.train import train_from_data
from rewarddance.jobs.train_reward_config import RewardConfig
from rewarddance.reward.checkpoint import spec_of
from rewarddance.reward.measure import measure_judge
from rewarddance.search.best_of_n import best_of_n
from rewarddance.world.benchmark import benchmark_prompts

DEMO_SEED = 1000
"""Added to the seed: these preferences are not those that the shipped judge was trained on."""


def run_demo(out: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Build preferences, train a judge, align the generator with it, evaluate, and write the figures.

    Args:
        fast: a few steps of everything, for tests; its figures mean nothing.

    Returns:
        What `summary.json` holds.
    """
    began = time.monotonic()
    for kind in ("generator", "vlm", "judge"):
        find("tiny", kind)  # type: ignore[arg-type]  # say now, not after minutes, what is not installed
    if out.exists():
        if not (out / "demo.json").is_file() and any(out.iterdir()):
            from rewarddance.core.errors import RunError

            raise RunError(f"{out}: exists and is not a demo; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    write_json(out / "demo.json", {"fast": fast, "seed": seed})
    small = 1 if fast else 5
    console.print("1/4 preferences: samples of the generator and corrupted renders, judged by simulated raters")
    preferences = PreferencesConfig(seed=DEMO_SEED + seed, num_prompts=60 * small)
    data = build_data(preferences, 8 * small, "tiny", out / "preferences", 4 if fast else 10)
    console.print("2/4 judge: the shipped judge, a small VLM, goes on learning from these preferences")
    loop = LoopConfig(num_steps=6 if fast else 30, validate_every=3 if fast else 15, save_every=1000)
    optim = OptimConfig(lr=5e-5, warmup_steps=5, schedule="cosine", ema_decay=0.95, weight_decay=0.01)
    shipped = find("tiny", "judge")
    reward = RewardConfig(
        seed=seed,
        data=str(data),
        backbone=str(shipped),
        temperature=spec_of(shipped).temperature,
        prompts_per_step=4 if fast else 10,
        loop=loop,
        optim=optim,
    )
    train_from_data(reward, out / "judge")
    judge = load_judge(out / "judge", precision="bf16", image_cache=96)
    held_out, ood = (RecordTable.open(data / f"{name}.parquet") for name in ("id", "ood"))
    accuracy = {"id": measure_judge(judge, held_out), "ood": measure_judge(judge, ood)}
    before = measure_judge(load_judge("tiny", precision="bf16"), held_out)
    console.print("3/4 alignment: reward feedback through the judge against best-of-N references")
    align = AlignConfig(
        seed=seed,
        judge=str(out / "judge"),
        num_prompts=8 if fast else 96,
        batch_size=4 if fast else 16,
        probe_prompts=4 if fast else 30,
        refl=ReflConfig(window=(0.3, 0.9)),
        optim=OptimConfig(lr=1e-3, warmup_steps=5, ema_decay=0.95),
        loop=LoopConfig(num_steps=3 if fast else 130, validate_every=2 if fast else 43, save_every=1000),
    )
    align_generator(align, load_generator("tiny"), judge, out / "align")
    console.print("4/4 evaluation: 240 held-out prompts, the same noises before and after, the exact oracle")
    found = evaluate_alignment(
        out / "align",
        num_noises=1 if fast else 2,
        every=24 if fast else 1,
        diversity_prompts=4 if fast else 24,
        diversity_noises=3 if fast else 6,
    )
    best = _best_of_n(out, judge, fast, seed)
    summary = {
        "gain": {k: found["gain"][k] for k in ("mean", "ci_low", "ci_high", "verdict")},
        "judge": {
            "accuracy_id": accuracy["id"]["accuracy"],
            "accuracy_ood": accuracy["ood"]["accuracy"],
            "before_id": before["accuracy"],
        },
        "best_of_n": best,
        "hacking": _hacking(out / "align"),
        "seconds": round(time.monotonic() - began, 1),
        "peak_memory_mib": round(peak_resident_mib()),
    }
    write_json(out / "judge" / "evaluation.json", accuracy)
    write_json(out / "summary.json", summary)
    return summary


def _hacking(run: Path) -> str:
    """The monitor's last word."""
    words = [m["probe/hacking"] for m in RunFolder(run).metrics() if "probe/hacking" in m]
    return str(words[-1]) if words else "none"


@torch.no_grad()
def _best_of_n(out: Path, judge: Any, fast: bool, seed: int) -> dict[str, float]:
    """Best-of-8 by the trained judge on the unaligned generator: oracle of the winner against the mean candidate."""
    prompts = [p for _, p in benchmark_prompts()][:: 80 if fast else 8]
    generator = load_generator("tiny")
    rng = torch.Generator().manual_seed(seed)
    with autocast(generator.device):
        found = best_of_n(generator, judge, prompts, 8, rng, 10, "fidelity")
    folder = out / "best_of_n"
    folder.mkdir()
    listed: list[dict[str, Any]] = []
    for k, s in enumerate(found):
        values = [gold(s.prompt, m) for m in s.candidates]
        if k < 4:
            for i, m in enumerate(s.candidates):
                m.to_pil().save(folder / f"{k}_{i}.png")
        listed.append({"prompt": s.prompt, "best": s.best, "oracle": values, "margin": s.margin.tolist()})
    write_json(folder / "best_of_n.json", listed)
    winners = sum(x["oracle"][x["best"]] for x in listed) / len(listed)
    return {"winner": winners, "mean": sum(sum(x["oracle"]) / 8 for x in listed) / len(listed)}
