"""Align a generator with a judge: ReFL, or the supervised control, with probes, references, KL and resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rewarddance.align.config import AlignConfig
from rewarddance.align.references import ReferenceBank
from rewarddance.core.errors import ConfigError
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.parallel import (
    is_leader,
    wait_for_all,
    world_size,
)
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import RunFolder
from rewarddance.core.seen import write_seen
from rewarddance.core.streams import stream
from rewarddance.core.types import RewardModel
from rewarddance.jobs.align_runs import AlignRun, ReflRun
from rewarddance.jobs.probes import Gold, Prober, oracle_gold
from rewarddance.world.grammar import WORDINGS, phrase
from rewarddance.world.sampling import sample_pair
from rewarddance.world.scene import CANVAS
from rewarddance.world.splits import meaning


def training_prompts(num: int, num_others: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training prompts of the embedded world, and other ones; no two of all mean the same."""
    rng, found = stream(seed, "align-prompts"), dict[str, str]()
    while len(found) < num + num_others:
        spec, wording = sample_pair(rng)[0], WORDINGS[int(rng.integers(len(WORDINGS)))]
        found.setdefault(meaning(spec), phrase(spec, wording))
    prompts = tuple(found.values())
    return prompts[:num], prompts[num:]


def align_generator(
    config: AlignConfig,
    generator: Tunable,
    judge: RewardModel | None,
    out: Path,
    *,
    prompts: Sequence[str] | None = None,
    probe_prompts: Sequence[str] | None = None,
    gold: Gold | None = oracle_gold,
    resume: bool = False,
    title: str = "align",
    report: Callable[[int, int, Metrics], None] | None = None,
) -> Path:
    """Train a LoRA adapter and save it to `out/adapter`.

    Args:
        judge: None for the supervised control, which asks none.
        prompts: what to train on; drawn from the embedded world when None.
        probe_prompts: what probes look at; when None, the first of `prompts`, or of the embedded world other prompts
            than it trains on.
        gold: measure of the probes that the training does not see; without one (None) hacking cannot be called.

    Raises:
        ConfigError: no judge to learn from, fewer prompts than processes, or a control that needs the embedded world.
    """
    criterion = config.criterion or str(getattr(judge, "criterion", "fidelity"))
    config = config.model_copy(update={"criterion": criterion})
    drawn, others = training_prompts(config.num_prompts, config.probe_prompts, config.seed) if not prompts else ((), ())
    chosen = tuple(prompts or drawn)
    _check(config, chosen, generator, own=prompts is not None)
    folder = RunFolder(out)
    if is_leader():
        folder.start("align", config, resume=resume)
    wait_for_all()
    torch.manual_seed(config.seed)
    generator.add_lora(config.lora_rank, config.lora_alpha)
    if config.gradient_checkpointing:
        generator.checkpoint_gradients()
    loop = Loop(generator.trainable(), config.optim, config.loop, folder)
    looks = (probe_prompts or others or chosen)[: config.probe_prompts]
    run = _run(config, generator, judge, loop, chosen, looks, gold)
    if resume and loop.resume():
        run.restore()
    else:
        run.begin()
    loop.keep = run.remember
    loop.fit(title, ("reward", "kl", "loss"), run.step, run.validate, run.stop, report)
    if is_leader():
        generator.save_adapter(out / "adapter")
        if config.algorithm == "refl":
            write_seen(out / "adapter", chosen)
    wait_for_all()
    return out / "adapter"


def _run(
    config: AlignConfig,
    generator: Tunable,
    judge: RewardModel | None,
    loop: Loop,
    chosen: tuple[str, ...],
    looks: Sequence[str],
    gold: Gold | None,
) -> AlignRun:
    if config.algorithm == "sft":
        return AlignRun(config, generator, loop)
    if judge is None:
        raise ConfigError(f"algorithm {config.algorithm}: needs a judge")
    steps, criterion = config.refl.num_steps, config.criterion or ""
    bank = ReferenceBank(config.references, chosen, steps, criterion, config.seed, config.sample_batch)
    prober = Prober(
        generator, judge, looks, config.probe_noises, steps, criterion, config.seed, gold, config.sample_batch
    )
    return ReflRun(config, generator, loop, judge, bank, prober)


def _check(config: AlignConfig, chosen: Sequence[str], generator: Tunable, *, own: bool) -> None:
    """Before a run folder is written."""
    if min(len(chosen), config.batch_size) < world_size():
        raise ConfigError(
            f"{world_size()} processes: needs as many prompts ({len(chosen)}) and as large a batch_size "
            f"({config.batch_size}), or larger"
        )
    if config.algorithm == "sft" and own:
        raise ConfigError("algorithm sft: trains on captioned renders of the embedded world, so it takes no --prompts")
    if not own and generator.side != CANVAS:
        raise ConfigError(
            f"{config.generator}: draws {generator.side} pixels, so the embedded world's prompts mean nothing to it; "
            "give your own with --prompts FILE"
        )
