"""`rewarddance demo`: the main job on the embedded world, in minutes on two cores, with pictures or with clips."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from rewarddance.align.config import AlignConfig
from rewarddance.core.clips import animation, need_pyav
from rewarddance.core.config import load_recipe, merge, parse_config
from rewarddance.core.errors import JudgementError, RunError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.memory import peak_resident_mib
from rewarddance.core.progress import say
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.data.parquet import RecordTable
from rewarddance.evaluate.judge import measure_judge
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.data.build import build_clips, build_data
from rewarddance.jobs.evaluate import evaluate_alignment
from rewarddance.jobs.load import find, load_generator, load_generator_of, load_single_judge, load_task
from rewarddance.jobs.train import train_from_data
from rewarddance.lab.demo_config import DEMOS, Demo, DemoSizes, DemoTask
from rewarddance.reward.judge import Judge
from rewarddance.reward.saved import read_spec
from rewarddance.reward.train_config import RewardConfig
from rewarddance.search.best_of_n import draw_candidates, select
from rewarddance.world.build.clip_preferences import ClipPreferencesConfig
from rewarddance.world.build.preferences import PreferencesConfig

ALGORITHM_NAMES = {
    "nft": "DiffusionNFT on groups of samples that the judge scores",
    "refl": "reward feedback through the judge against best-of-N references",
}
DEMO_SEED = 1000
"""Added to the seed, so that these preferences are not those of the shipped judge's training."""


def run_demo(out: Path, *, task: DemoTask = "t2i", fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Build preferences, train a judge, align the generator with it, evaluate, and write the figures.

    Args:
        task: pictures (`t2i`) or clips (`t2v`).
        fast: a few steps of everything, for tests; its figures mean nothing.

    Returns:
        The content of `summary.json`.

    Raises:
        ConfigError: an embedded model is missing.
        InputError: clips cannot be stored, because PyAV is missing.
        RunError: `out` holds something else.
    """
    began = time.monotonic()
    demo = DEMOS[task]
    sizes, kind = demo.fast if fast else demo.full, "clips" if task == "t2v" else "pictures"
    _check_parts(demo)
    _empty(out)
    write_json(out / "demo.json", {"task": task, "fast": fast, "seed": seed})
    say(f"1/4 preferences: {kind} of the generator and corrupted renders, judged by simulated raters")
    data = _preferences(demo, sizes, out / "preferences", DEMO_SEED + seed)
    say("2/4 judge: the shipped judge, a small VLM, is trained further on these preferences")
    judge, accuracy = _judge(demo, sizes, data, out / "judge", seed)
    config = _align_config(demo, sizes, out / "judge", seed)
    say(f"3/4 alignment: {ALGORITHM_NAMES[config.algorithm]}")
    align_generator(config, load_generator_of(config), judge, out / "align")
    say("4/4 evaluation: held-out prompts, the same noises before and after, the exact oracle")
    evaluation = evaluate_alignment(
        out / "align",
        num_noises=sizes.noises,
        every=sizes.every,
        diversity_prompts=sizes.diversity_prompts,
        diversity_noises=sizes.diversity_noises,
    )
    summary: dict[str, Any] = {
        "task": task,
        "gold": load_task(demo.task).gold_name,
        "gain": {k: evaluation["gain"][k] for k in ("mean", "ci_low", "ci_high", "verdict")},
        "judge": accuracy,
        "best_of_n": _best_of_n(out / "best_of_n", demo, sizes, config, judge),
        "hacking": evaluation["hacking"],
        "alarms": RunFolder(out / "align").alarms(),
        "diversity_kept": evaluation["diversity"]["feature_ratio"],
        "computes_in": evaluation["computes_in"],
    }
    if "clips" in evaluation:
        summary["clips"] = {k: evaluation["clips"][k] for k in ("good_same_bad", "moving")}
    summary |= {"seconds": round(time.monotonic() - began, 1), "peak_memory_mib": round(peak_resident_mib())}
    write_json(out / "summary.json", summary)
    return summary


def _check_parts(demo: Demo) -> None:
    """Raise an error at once if weights or PyAV are missing."""
    find(demo.generator, "generator")
    find(demo.judge, "judge")
    find("tiny", "vlm")
    if demo is DEMOS["t2v"]:
        need_pyav("demo of clips")


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


def _preferences(demo: Demo, sizes: DemoSizes, out: Path, seed: int) -> Path:
    if demo.task == "embedded":
        pictures = PreferencesConfig(seed=seed, num_prompts=sizes.prompts, criterion=demo.criterion)
        return build_data(pictures, sizes.held_out, demo.generator, out, sizes.sampling_steps)
    clips = ClipPreferencesConfig(seed=seed, num_prompts=sizes.prompts, criterion=demo.criterion)
    return build_clips(clips, sizes.held_out, out, 0, demo.generator, sizes.sampling_steps)


def _judge(demo: Demo, sizes: DemoSizes, data: Path, out: Path, seed: int) -> tuple[Judge, dict[str, float]]:
    """The shipped judge, trained further, and shares of pairs that it orders right. Writes `evaluation.json`."""
    train_from_data(_judge_config(demo, sizes, data, seed), out)
    judge = load_single_judge(out)
    held_out, ood = (RecordTable.open(data / f"{name}.parquet") for name in ("id", "ood"))
    figures = {"id": measure_judge(judge, held_out), "ood": measure_judge(judge, ood)}
    before = measure_judge(load_single_judge(demo.judge), held_out)
    write_json(out / "evaluation.json", figures)
    accuracy = {f"accuracy_{name}": f["accuracy"] for name, f in figures.items()}
    return judge, accuracy | {"before_id": before["accuracy"]}


def _judge_config(demo: Demo, sizes: DemoSizes, data: Path, seed: int) -> RewardConfig:
    shipped = find(demo.judge, "judge")
    spec, steps = read_spec(shipped), sizes.judge_steps
    return RewardConfig(
        seed=seed,
        data=str(data),
        backbone=str(shipped),
        paradigm=spec.paradigm,
        temperature=spec.temperature,
        pointwise_weight=demo.pointwise_weight,
        clips=spec.clips,
        prompts_per_step=sizes.judge_prompts,
        loop=LoopConfig(num_steps=steps, validate_every=steps // 2, save_every=1000),
        optim=OptimConfig(lr=demo.judge_lr, warmup_steps=5, schedule="cosine", ema_decay=0.95, weight_decay=0.01),
    )


def _align_config(demo: Demo, sizes: DemoSizes, judge: Path, seed: int) -> AlignConfig:
    steps = sizes.align_steps
    changes = {
        "seed": seed,
        "generator": demo.generator,
        "judge": str(judge),
        "task": demo.task,
        "num_prompts": sizes.align_prompts,
        "batch_size": sizes.align_batch,
        "probe_prompts": sizes.probe_prompts,
        "loop": LoopConfig(num_steps=steps, validate_every=max(2, steps // 3), save_every=1000).model_dump(),
    }
    recipe = merge(AlignConfig().model_dump(), load_recipe(Path(demo.recipe)))
    return parse_config(AlignConfig, merge(recipe, changes), "demo")


@torch.no_grad()
def _best_of_n(folder: Path, demo: Demo, sizes: DemoSizes, config: AlignConfig, judge: Judge) -> dict[str, float]:
    """Oracle values of best-of-N by the trained judge, on the generator before alignment: winners, and mean candidates.

    Prompts whose candidates the judge could not compare are left out and counted as `refused`.

    Raises:
        JudgementError: the judge refused all prompts.
    """
    task, num = load_task(demo.task), sizes.candidates
    prompts = [p.text for p in task.benchmark()][:: sizes.best_of_every]
    rng = torch.Generator().manual_seed(config.seed)
    generator = load_generator(demo.generator)
    candidates = draw_candidates(generator, prompts, num, rng, config.num_steps, config.sample_batch)
    selections = [s for s in select(judge, prompts, candidates, demo.criterion) if s.best is not None]
    if not selections:
        raise JudgementError(f"best of {num}: the judge could not compare the candidates of any prompt")
    folder.mkdir()
    entries: list[dict[str, Any]] = []
    for k, s in enumerate(selections):
        assert task.gold is not None
        values = task.gold([s.prompt] * num, s.candidates, s.candidates)
        if k < 4:
            for i, m in enumerate(s.candidates):
                _save(m, folder / f"{k}_{i}")
        entries.append({"prompt": s.prompt, "best": s.best, "oracle": values, "margin": s.margin.tolist()})
    write_json(folder / "best_of_n.json", entries)
    winners = sum(x["oracle"][x["best"]] for x in entries) / len(entries)
    mean = sum(sum(x["oracle"]) / num for x in entries) / len(entries)
    return {"winner": winners, "mean": mean, "candidates": num, "refused": len(prompts) - len(entries)}


def _save(media: Media, path: Path) -> None:
    """A picture as PNG, a clip as animated WebP."""
    if media.fps is None:
        media.to_pil().save(path.with_suffix(".png"))
    else:
        path.with_suffix(".webp").write_bytes(animation([media.to_numpy()], media.fps))
