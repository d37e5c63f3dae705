"""`rewarddance align`: loads the models and the task that the configuration names, then trains an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rewarddance.align.algorithms import ALGORITHMS
from rewarddance.align.config import AlignConfig
from rewarddance.align.probes import Prober, judge_gold
from rewarddance.align.references import ReferenceBank
from rewarddance.align.refl_run import ReflRun
from rewarddance.align.rollout_run import RolloutRun
from rewarddance.align.run import AlignRun
from rewarddance.align.supervised import SupervisedRun
from rewarddance.align.work import CountedJudge, Watcher, Work, counted
from rewarddance.core.disk import kept, writing
from rewarddance.core.errors import ConfigError, InputError, JudgementError
from rewarddance.core.loop import Loop, Metrics, OnStep
from rewarddance.core.media import Media
from rewarddance.core.parallel import barrier, is_leader, world_size
from rewarddance.core.progress import say
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import RunFolder
from rewarddance.core.seen import fingerprint, write_seen
from rewarddance.core.task import Drawn, Gold, Prompt, Task
from rewarddance.core.trackers import check_trackers
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.data.prompt_task import PromptTask
from rewarddance.data.prompts import read_prompts
from rewarddance.jobs.load import (
    adapter_folder,
    load_generator_of,
    load_judge,
    load_task,
    same_judge,
    warn_of_cut_prompts,
)
from rewarddance.reward.composite_config import JudgePartConfig, is_composite, load_composite_config
from rewarddance.reward.objective import HasProblems


def align_from_names(config: AlignConfig, out: Path, resume: bool = False) -> Path:
    """Load what the configuration names and align; returns the adapter's folder.

    With a file of prompts there is no oracle: `gold_judge` is the gold standard, and without one the probes log the
    proxy alone.

    Raises:
        InputError: a file of prompts is missing, empty, or not the one that the configuration was made with.
    """
    check_trackers(config.loop.trackers)
    config, task = _task(config)  # before models are loaded, so that a wrong name is reported at once
    judge = None  # the supervised control asks none
    gold = None
    if config.algorithm != "sft":
        judge = load_judge(config.judge, precision=config.precision, compile=config.compile)
        gold = gold_of(config, config.criterion or judge.criterion)
    return align_generator(config, load_generator_of(config), judge, out, task=task, gold=gold, resume=resume)


def gold_of(config: AlignConfig, criterion: str) -> Gold | None:
    """The measure of the configuration's `gold_judge`; None without one. A judge without the criterion takes its own.

    A message warns if training asks that judge too.
    """
    if config.gold_judge is None:
        return None
    _warn_of_same_judge(config.judge, config.gold_judge)
    judge = load_judge(config.gold_judge, precision=config.precision, compile=config.compile)
    return judge_gold(judge, judge.own_or(criterion))


def _task(config: AlignConfig) -> tuple[AlignConfig, Task]:
    """The task, and the configuration with the hash of its file."""
    if config.prompts is None:
        return config, load_task(config.task)
    prompts, sha256 = read_prompts(Path(config.prompts))
    if config.prompts_sha256 not in (None, sha256):
        raise InputError(f"{config.prompts}: has changed since the run was made")
    if len(prompts) > config.num_prompts:
        say(f"{config.prompts}: {len(prompts):,} prompts; trains on the first {config.num_prompts:,} (num_prompts)")
        prompts = prompts[: config.num_prompts]
    probes = _probe_prompts(config, prompts) if config.probe_file is not None else ()
    return config.model_copy(update={"prompts_sha256": sha256}), PromptTask(prompts, probes)


def _check_gradients(config: AlignConfig, judge: RewardModel) -> None:
    """Raises `ConfigError` if the algorithm needs the judge's gradient and the judge has none."""
    if config.algorithm == "refl" and not getattr(judge, "differentiable", True):
        raise ConfigError(
            f"algorithm refl: needs the judge's gradient, and {config.judge} is (or asks) a server, which sends none; "
            f"use --algorithm {', '.join(ALGORITHMS)}, or a judge in this process"
        )


def _warn_of_same_judge(judge: str, gold: str) -> None:
    """Print a message if the gold standard is the training judge, or a part of it."""
    parts = [judge]
    if is_composite(judge):
        parts += [p.judge for p in load_composite_config(judge).parts.values() if isinstance(p, JudgePartConfig)]
    if any(same_judge(part, gold) for part in parts):
        say(f"gold_judge {gold}: training asks it too, so its probes cannot show hacking; name another judge")


def _probe_prompts(config: AlignConfig, training: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Prompts of the probe file. Prints how many are not used, and how many are not held out."""
    probes, _ = read_prompts(Path(config.probe_file or ""))
    known = {fingerprint(p.text) for p in training}
    shared = sum(fingerprint(p.text) in known for p in probes[: config.probe_prompts])
    if len(probes) > config.probe_prompts:
        say(
            f"{config.probe_file}: {len(probes):,} prompts; probes use the first "
            f"{config.probe_prompts:,} (probe_prompts)"
        )
    if shared:
        say(f"{config.probe_file}: {shared} of the probes' prompts are trained on too, so their gain flatters")
    return probes


def align_generator(
    config: AlignConfig,
    generator: Tunable,
    judge: RewardModel | None,
    out: Path,
    *,
    task: Task | None = None,
    gold: Gold | None = None,
    resume: bool = False,
    title: str = "align",
    on_step: OnStep | None = None,
    watcher: Watcher | None = None,
) -> Path:
    """Train a LoRA adapter and save it to `out/adapter`.

    Every step logs the work so far (`work/NAME`, `align/work.py`).

    Args:
        judge: None for the supervised control.
        task: prompts and gold standard; the configuration's when None.
        gold: the gold standard of the probes in place of the task's (`gold_of`). If the task has one too, probes log
            the task's as `probe/truth`, and no alarm depends on it.
        watcher: is called after every step, and may end the run.

    Raises:
        ConfigError: no judge to learn from, fewer prompts than processes, or a generator that cannot do the task.
    """
    task = task or load_task(config.task)
    criterion = config.criterion or str(getattr(judge, "criterion", "fidelity"))
    config = config.model_copy(update={"criterion": criterion})
    _check_parts(config, generator, judge, task, gold or task.gold)
    training, probing = task.prompts(config.num_prompts, config.probe_prompts, config.seed)
    _check_batch(config, len(training))
    _keep_references(config, judge, generator.drawn, len(training))
    folder = RunFolder(out)
    computes_in: dict[str, str] = {"generator": generator.precision}
    if judge is not None:
        computes_in["judge"] = getattr(judge, "precision", "unknown")
    if is_leader():
        folder.start("align", config, resume=resume, facts={"computes_in": computes_in})
        warn_of_cut_prompts(generator, [p.text for p in training], config.max_sequence_length)
    barrier()
    _make_trainable(generator, config)
    loop = Loop(generator.trainable(), config.optim, config.loop, folder)
    work = Work()
    run = _run(config, generator, judge, loop, task, gold, training, probing, work)
    if resume and loop.resume():
        run.load_state()
    else:
        run.begin()
    loop.before_save = run.save_state
    _fit(loop, run, work, title, on_step, watcher)
    if is_leader():
        with writing(out / "adapter", folder.checkpoints):
            generator.save_adapter(out / "adapter")
            if config.algorithm != "sft":
                write_seen(out / "adapter", [p.text for p in training])
    barrier()
    return out / "adapter"


def _fit(loop: Loop, run: AlignRun, work: Work, title: str, on_step: OnStep | None, watcher: Watcher | None) -> None:
    """Train to the end, or until the run or the watcher gives a reason to stop.

    Raises:
        JudgementError: the judge refused too much; the message says which checkpoint is kept.
    """

    def step(index: int) -> Metrics:
        return run.step(index) | work.total(loop.extra)

    def stop(metrics: Metrics) -> str | None:
        reason = run.stop(metrics)
        return (watcher.after_step(loop, metrics) if watcher is not None else None) or reason

    try:
        loop.fit(title, ("reward", "kl", "loss"), step, run.validate, stop, on_step)
    except JudgementError as error:
        raise JudgementError(f"{error}; {kept(loop.folder.checkpoints)}") from error


def _check_parts(
    config: AlignConfig, generator: Tunable, judge: RewardModel | None, task: Task, gold: Gold | None
) -> None:
    """Raises `ConfigError` if generator, judge, task and gold standard do not go together."""
    if config.on_hacking != "warn" and gold is None and config.algorithm != "sft":
        raise ConfigError(f"on_hacking {config.on_hacking}: needs a gold standard; name a second judge (gold_judge)")
    if judge is not None:
        _check_gradients(config, judge)
    _check_question(config, judge, generator.drawn)
    task.check(generator.drawn)
    if config.algorithm == "sft" or (config.algorithm == "refl" and config.refl.supervised_weight):
        task.supervised_batch(config.seed, "sft-control", 0, 1)  # raises an error if the task has no pictures


def _check_batch(config: AlignConfig, num_prompts: int) -> None:
    """Raises `ConfigError` if a step has too few prompts for the processes, or more than there are."""
    units = config.batch_size // (config.rollout.group_size if config.has_groups else 1)
    parts = config.rollout.minibatches if config.has_groups else 1
    if min(num_prompts, units // parts) < world_size():
        raise ConfigError(
            f"{world_size()} processes need as many prompts ({num_prompts}) and as large a batch_size "
            f"({config.batch_size}), or larger"
        )
    if config.has_groups and units > num_prompts:
        raise ConfigError(f"batch_size {config.batch_size}: {units} groups a step, but only {num_prompts} prompts")


def _keep_references(config: AlignConfig, judge: RewardModel | None, drawn: Drawn, num_prompts: int) -> None:
    """Let a judge cache the image tokens of pictures that it sees again: each prompt's reference and first frame."""
    keep = getattr(judge, "keep_images", None)
    if keep is not None:
        keep(num_prompts, _sample(drawn) if config.uses_references else None, int(drawn.from_picture))


def _sample(drawn: Drawn) -> Media:
    """A grey sample of what a generator draws. It takes the memory of one pixel."""
    pixels = torch.full((1, 1, 1, 1), 0.5).expand(drawn.num_frames, 3, drawn.side, drawn.side)
    return Media(pixels, drawn.fps)


def _check_question(config: AlignConfig, judge: RewardModel | None, drawn: Drawn) -> None:
    """Raises `ConfigError` if the algorithm asks about single pictures and the judge can only compare."""
    alone = config.rollout.score == "pointwise" if config.has_groups else config.references.kind == "none"
    if config.algorithm == "sft" or not alone or not isinstance(judge, HasProblems):
        return
    if problem := judge.problem(Comparison("a picture", _sample(drawn), None, config.criterion)):
        key = "rollout.score: pointwise" if config.has_groups else "references.kind: none"
        raise ConfigError(f"{key}: {problem}")


def _make_trainable(generator: Tunable, config: AlignConfig) -> None:
    """Give the generator the adapter to train: a new one, or that of an earlier run."""
    torch.manual_seed(config.seed)
    if config.adapter is not None:
        generator.load_adapter(adapter_folder(config.adapter), trainable=True)
    else:
        generator.add_lora(config.lora_rank, config.lora_alpha)
    if config.gradient_checkpointing:
        generator.checkpoint_gradients()
    if config.decode_chunk:
        generator.decode_in_chunks(config.decode_chunk)


def _run(
    config: AlignConfig,
    generator: Tunable,
    judge: RewardModel | None,
    loop: Loop,
    task: Task,
    gold: Gold | None,
    training: Sequence[Prompt],
    probing: Sequence[Prompt],
    work: Work,
) -> AlignRun:
    training_generator = counted(generator, work)
    if config.algorithm == "sft":
        return SupervisedRun(config, training_generator, loop, task)
    if judge is None:
        raise ConfigError(f"algorithm {config.algorithm}: needs a judge")
    steps, criterion = config.num_steps, config.criterion or ""
    seed, batch, clips = config.seed, config.sample_batch, loop.folder.path / "clips"
    fps = generator.drawn.fps
    bank = ReferenceBank(config.references, tuple(training), steps, criterion, seed, batch, folder=clips, fps=fps)
    prober = Prober(
        generator,
        judge,
        probing,
        config.probe_noises,
        steps,
        criterion,
        seed,
        gold or task.gold,
        batch,
        truth=task.gold if gold is not None else None,
        folder=clips,
        samples=loop.folder.samples,
    )
    training_judge = CountedJudge(judge, work)
    if config.has_groups:
        algorithm = ALGORITHMS[config.algorithm](config, training_generator, len(training))
        return RolloutRun(config, training_generator, loop, training_judge, bank, prober, algorithm=algorithm)
    return ReflRun(config, training_generator, loop, training_judge, bank, prober, task=task)
