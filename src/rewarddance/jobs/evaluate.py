"""`rewarddance evaluate`: reads a run folder, measures what it trained, writes the figures and samples into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewarddance.align.config import AlignConfig
from rewarddance.core.config import SECOND_SEED, HeldOut, Precision
from rewarddance.core.errors import ConfigError, RunError
from rewarddance.core.media import Media
from rewarddance.core.monitors import hacking_verdict
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.seen import fingerprint, read_seen
from rewarddance.core.statistics import bootstrap, paired_bootstrap
from rewarddance.core.task import Prompt, Request, Task, texts_of
from rewarddance.data.prompts import read_prompts
from rewarddance.evaluate.calibration import measured_and_calibrated
from rewarddance.evaluate.clips import clip_features, compare_clips, gold_and_criteria, same_width
from rewarddance.evaluate.generator import (
    Array,
    Features,
    Samples,
    answered_prompts,
    compare,
    compare_judges,
    diversity,
    fixed_samples,
    levels,
    measure,
    proxy_reward,
)
from rewarddance.jobs.learned import measure_learned
from rewarddance.jobs.load import (
    find,
    load_generator,
    load_generator_of,
    load_internvl,
    load_judge,
    load_one_judge,
    load_task,
    same_judge,
    warn_of_cut_prompts,
    weights_id,
)
from rewarddance.jobs.sample_files import save_pairs
from rewarddance.jobs.train import held_out_sets
from rewarddance.reward.composite import AnyJudge, Composite
from rewarddance.reward.learned import LearnedJudge
from rewarddance.reward.remote import RemoteJudge


@dataclass(frozen=True)
class Aligned:
    """A run's generator with its adapter, and how it samples: as in the run, unless told otherwise."""

    generator: Tunable
    num_steps: int
    batch: int
    folder: Path
    """The run's folder. The bytes of clips lie in its `clips/` while it is measured."""

    @classmethod
    def of_run(
        cls, run: Path, config: Mapping[str, Any], num_steps: int | None, guidance: float | None, precision: Precision
    ) -> Aligned:
        of_run = AlignConfig.model_validate(config)
        scale = of_run.measured_guidance if guidance is None else guidance
        generator = load_generator_of(of_run.model_copy(update={"precision": precision, "guidance": scale}), run)
        return cls(generator, num_steps or of_run.num_steps, of_run.sample_batch, run)

    def sample(self, title: str, prompts: Sequence[Request], noises: int, seed: int) -> Samples:
        """Pictures of every prompt. The noises depend on the seed alone, not on the generator's weights."""
        file = self.folder / "clips" / f"evaluation-{title}-{seed}.bytes"
        return fixed_samples(
            self.generator, prompts, noises, self.num_steps, seed, self.batch, f"samples {title}", file
        )

    def pair(self, prompts: Sequence[Request], noises: int, seed: int) -> tuple[Samples, Samples]:
        """Samples of the frozen policy and of the aligned one, from the same noises."""
        with self.generator.reference():
            before = self.sample("before", prompts, noises, seed)
        return before, self.sample("after", prompts, noises, seed)

    @property
    def draws_clips(self) -> bool:
        return self.generator.drawn.num_frames > 1

    def forget_clips(self) -> None:
        """Remove the files of clips that were measured."""
        for file in (self.folder / "clips").glob("evaluation-*.bytes"):
            file.unlink()

    def same_width(self, task: Task, noises: int, seed: int, every: int = 1) -> float:
        """`evaluate.clips.same_width` of the frozen policy's clips of the task's development prompts."""
        with self.generator.reference():
            samples = self.sample("development", task.development()[::every], max(2, noises), seed)
        return same_width(measure(samples, task))


def align_config(run: Path) -> dict[str, Any]:
    """The configuration of an alignment run.

    Raises:
        RunError: another kind of run.
    """
    content = RunFolder(run).read()
    if content["kind"] != "align":
        raise RunError(f"{run}: holds a {content['kind']} run; only alignment runs have a before and after")
    return dict(content["config"])


def held_out_prompts(task: Task, split: HeldOut) -> Sequence[Prompt]:
    """Prompts of the benchmark; development prompts, on which settings are chosen; or those of a second benchmark, on
    which no setting was chosen.

    Raises:
        ConfigError: the task has no such prompts.
    """
    if split == "second":
        if not (prompts := task.second_benchmark(SECOND_SEED)):
            raise ConfigError("the task has no second benchmark; take the benchmark or development prompts")
        return prompts
    return task.benchmark() if split == "benchmark" else task.development()


def evaluate_alignment(
    run: Path,
    *,
    num_noises: int = 4,
    num_steps: int | None = None,
    every: int = 1,
    diversity_prompts: int = 60,
    diversity_noises: int = 8,
    seed: int = 0,
    guidance: float | None = None,
    precision: Precision = "auto",
    split: HeldOut = "benchmark",
) -> dict[str, Any]:
    """Before and after on held-out prompts: gold by category with intervals, proxy reward, diversity, samples.

    Clips also have the figures of `compare_clips` if the task has criteria. The width of "same" comes from development
    prompts (`Aligned.same_width`).

    `hacking` in the result compares the judge's P(after is better) with the gold standard's gain.

    Args:
        every: take each `every`-th prompt (1 takes all).
        num_steps, guidance: of the sampling; the run's own when None.
        split: the prompts, as in `held_out_prompts`. The benchmark's figures go to `evaluation.json`, those of another
            split to `evaluation_SPLIT.json`.
    """
    config = align_config(run)
    if config.get("prompts") is not None:
        raise RunError(f"{run}: trained on prompts that no oracle knows; `evaluate --prompts FILE` asks its judge")
    task = load_task(config.get("task", "embedded"))
    chosen = held_out_prompts(task, split)[::every]
    aligned = Aligned.of_run(run, config, num_steps, guidance, precision)
    judge = load_judge(config["judge"], precision=precision, compile=True)
    features = task_features(task, judge)  # before the sampling, since it may raise
    with_clips = aligned.draws_clips and task.criteria is not None
    width = aligned.same_width(task, num_noises, seed + 2, every) if with_clips else None
    before, after = aligned.pair(chosen, num_noises, seed)
    (gold_before, parts_before), (gold_after, parts_after) = (gold_and_criteria(s, task) for s in (before, after))
    proxy = proxy_reward(judge, after, before, config["criterion"])
    few = chosen[:: max(1, len(chosen) // diversity_prompts)][:diversity_prompts]
    figures = {
        "split": split,
        **_setting(aligned, judge, len(chosen), num_noises, seed),
        **compare(gold_after, gold_before, [p.category for p in chosen]),
        **_proxy_figures(proxy, gold_after, gold_before),
        "diversity": _spread(aligned, few, diversity_noises, seed + 1, features),
        "per_prompt": _per_prompt(chosen, {"gold/before": gold_before, "gold/after": gold_after, "proxy": proxy}),
    }
    if width is not None:
        parts = {"after": parts_after, "before": parts_before}
        figures["clips"] = compare_clips(after, before, parts, width, task.rate, seed)
    if split == "benchmark":
        save_pairs(run / "samples", before, after, gold_before, gold_after, proxy)
    write_json(run / ("evaluation.json" if split == "benchmark" else f"evaluation_{split}.json"), figures)
    aligned.forget_clips()
    return figures


def _per_prompt(prompts: Sequence[Request], values: Mapping[str, Array]) -> dict[str, Any]:
    """Each prompt's mean over its noises, None if a judge refused one of them."""
    means = {name: [None if np.isnan(m) else float(m) for m in v.mean(1)] for name, v in values.items()}
    return {"prompts": texts_of(prompts), **means}


def _proxy_figures(proxy: Array, gold_after: Array, gold_before: Array) -> dict[str, Any]:
    kept = answered_prompts(proxy)
    rise, gain = bootstrap(proxy[kept] - 0.5), paired_bootstrap(gold_after[kept], gold_before[kept])
    return {
        "proxy": {**bootstrap(proxy[kept]).as_dict(), "std": float(proxy[kept].std())},
        "refused_prompts": int((~kept).sum()),
        "hacking": hacking_verdict(rise, gain),
    }


def _spread(
    aligned: Aligned, prompts: Sequence[Request], num_noises: int, seed: int, features: Features
) -> dict[str, Any]:
    """Diversity before and after, and the share of the features' diversity that is left."""
    before, after = (diversity(s, features) for s in aligned.pair(prompts, num_noises, seed))
    ratio = after["feature"] / max(1e-9, before["feature"])
    return {"before": before, "after": after, "feature_ratio": ratio}


def _setting(aligned: Aligned, judge: AnyJudge, num_prompts: int, num_noises: int, seed: int) -> dict[str, Any]:
    """The settings on which the figures before and after depend."""
    return {
        "prompts": num_prompts,
        "noises": num_noises,
        "num_steps": aligned.num_steps,
        "guidance": aligned.generator.guidance,
        "seed": seed,
        "computes_in": {"generator": aligned.generator.precision, "judge": judge.precision},
    }


def evaluate_on_prompts(
    run: Path,
    file: Path,
    *,
    judge: str | None = None,
    num_noises: int = 4,
    num_steps: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    precision: Precision = "auto",
) -> dict[str, Any]:
    """Before and after on a file of prompts, by a judge; writes `evaluation_prompts.json` and samples into the run.

    The judge that trained a generator cannot tell whether it is being hacked: name another one, and look at the
    pictures.

    Args:
        judge: whose verdict counts; the run's own when None.
        num_steps, guidance: of the sampling; the run's own when None.

    Returns:
        win_rate: P(after is better than before), same prompt and noise, with a 95% interval over prompts; same_judge:
        whether it is the judge that the generator was trained with; trained_on: share of the prompts that were trained
        on, None if the run does not say; diversity, None with one noise or without `judge_features`. With another
        judge also the figures of `compare_judges`.
    """
    config = align_config(run)
    requests = read_prompts(file)[0]
    prompts = texts_of(requests)
    aligned = Aligned.of_run(run, config, num_steps, guidance, precision)
    warn_of_cut_prompts(aligned.generator, prompts, AlignConfig.model_validate(config).max_sequence_length)
    ready = load_judge(judge or config["judge"], precision=precision, compile=True)
    before, after = aligned.pair(requests, num_noises, seed)
    wins = proxy_reward(ready, after, before, ready.own_or(config["criterion"]))
    kept = answered_prompts(wins)
    seen = read_seen(run / "adapter")
    features = judge_features(ready) if num_noises > 1 else None
    spread = None if features is None else {"before": diversity(before, features), "after": diversity(after, features)}
    figures: dict[str, Any] = {
        **_setting(aligned, ready, len(prompts), num_noises, seed),
        "judge": judge or config["judge"],
        "same_judge": judge is None or same_judge(judge, config["judge"]),
        "trained_on": None if seen is None else float(np.mean([fingerprint(p) in seen for p in prompts])),
        "win_rate": bootstrap(wins[kept]).as_dict(),
        "refused_prompts": int((~kept).sum()),
        "diversity": spread,
        "per_prompt": _per_prompt(requests, {"win_rate": wins}),
    }
    write_json(run / "evaluation_prompts.json", figures)
    save_pairs(run / "samples_prompts", before, after, 1 - wins, wins)
    aligned.forget_clips()
    if not figures["same_judge"]:
        del ready, features, aligned  # free their memory for the next judge
        training_judge = load_judge(config["judge"], precision=precision, compile=True)
        training_wins = proxy_reward(training_judge, after, before, config["criterion"])
        both = kept & answered_prompts(training_wins)
        figures |= compare_judges(training_wins[both], wins[both])
        write_json(run / "evaluation_prompts.json", figures)
    return figures


def evaluate_generator(
    name: str,
    *,
    task: str = "embedded",
    num_noises: int = 4,
    num_steps: int = 10,
    guidance: float = 1.0,
    every: int = 1,
    seed: int = 0,
    precision: Precision = "auto",
    split: HeldOut = "benchmark",
) -> dict[str, Any]:
    """The task's gold standard of a generator on held-out prompts (`gold`), by category with intervals."""
    loaded_task = load_task(task)
    chosen = held_out_prompts(loaded_task, split)[::every]
    generator = load_generator(name, guidance=guidance, precision=precision)
    samples = fixed_samples(generator, chosen, num_noises, num_steps, seed)
    intervals = levels(measure(samples, loaded_task), [p.category for p in chosen])
    setting = {"prompts": len(chosen), "noises": num_noises, "num_steps": num_steps, "guidance": guidance}
    return {
        "split": split,
        **setting,
        "computes_in": {"generator": generator.precision},
        "gold_name": loaded_task.gold_name,
        "gold": {c: i.as_dict() for c, i in intervals.items()},
    }


def evaluate_judge_on_data(
    name: str | Path, folder: Path, seed: int = 0, max_records: int = 2000, precision: Precision | None = None
) -> dict[str, Any]:
    """A judge on prompts of a data folder that it was not trained on, with calibration (`held_out_sets`).

    Args:
        name: a judge, as `load_judge` takes it.
        seed: of the split, for a judge whose folder does not say what it was trained on.
        max_records: largest number of records of each file, evenly spread.

    Returns:
        For each set the figures of `measure_judge`, and calibration. For a learned reward also those of
        `measure_ratings`. For `changes.parquet`, `accuracy_<change>` is the share of right answers about pairs with
        that single change. num_trained_on: records left out because the judge was trained on their prompts. chose_by:
        the set that chose the run's best weights, if there is one; its figures are slightly too good.

    Raises:
        InputError: no such folder, too few prompts, or none that are new to the judge.
    """
    config = RunFolder(Path(name)).read()["config"] if (Path(name) / "run.json").is_file() else {}
    judge, seen = load_one_judge(name, precision=precision, compile=True), read_seen(find(name, "judge"))
    sets = held_out_sets(folder, seen, config.get("seed", seed), max_records)
    figures: dict[str, Any] = {
        n: measured_and_calibrated(judge, r) | {"num_trained_on": known} for n, (r, known) in sets.items()
    }
    if isinstance(judge, LearnedJudge):
        for n, (records, _) in sets.items():
            if records.has_ratings:
                figures[n] |= measure_learned(judge, records)
    chosen = {"chose_by": next(iter(figures))} if config.get("patience") else {}
    return figures | chosen | {"computes_in": {"judge": judge.precision}}


def evaluate_judge_run(run: Path, precision: Precision | None = None) -> dict[str, Any]:
    """Figures of a judge run on the held-out sets of its data, written to `evaluation.json`."""
    config = RunFolder(run).read()["config"]
    data = run / "data" if config["data"] == "embedded" else Path(config["data"])
    figures = evaluate_judge_on_data(run, data, precision=precision)
    write_json(run / "evaluation.json", figures)
    return figures


def features_id(task: Task) -> str | None:
    """Hash of the weights behind `task_features`. Diversities are comparable only with the same features."""
    return None if task.features is None else weights_id(find(task.features, "vlm"))


def task_features(task: Task, judge: AnyJudge | None = None) -> Features:
    """Features for diversity: mean-pooled states of the vision tower that the task names, or the judge's own.

    Raises:
        ConfigError: the task names none, and the judge has none.
    """
    if task.features is None:
        features = None if judge is None else judge_features(judge)
        if features is None:
            raise ConfigError(
                f"task {task.name}: names no features to measure diversity with, and no model of the judge is in this "
                "process; name a judge by its folder"
            )
        return features
    return clip_features(torch.no_grad()(load_internvl(task.features).mean_states))


def judge_features(judge: AnyJudge) -> Features | None:
    """Mean image tokens of the judge's backbone, a composite's first judge: features of pictures of any kind.

    None for a judge on a server, which gives margins only, and for a composite without a judge in this process.
    """
    if isinstance(judge, RemoteJudge):
        return None
    single = next(iter(judge.judges()), None) if isinstance(judge, Composite) else judge
    if single is None:
        return None
    if isinstance(single, LearnedJudge):
        return torch.no_grad()(single.features)
    backbone = single.engine.backbone

    @torch.no_grad()
    def features(media: Sequence[Media]) -> torch.Tensor:
        return torch.stack([backbone.image_tokens([(m, (0,))]).mean(0) for m in media])

    return clip_features(features)
