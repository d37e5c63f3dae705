"""Align a generator with a judge: ReFL, or the supervised control, with probes, references, KL and resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from rewarddance.align.config import AlignConfig
from rewarddance.align.references import ReferenceBank
from rewarddance.align.refl import FIGURES, refl_step
from rewarddance.core.device import autocast
from rewarddance.core.errors import ConfigError
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.monitors import Probe
from rewarddance.core.parallel import (
    add_up_gradients,
    is_leader,
    rank,
    wait_for_all,
    world_size,
)
from rewarddance.core.progress import progress
from rewarddance.core.runs import RunFolder
from rewarddance.core.seen import write_seen
from rewarddance.core.streams import seed_of, stream
from rewarddance.core.tally import Tally
from rewarddance.core.types import RewardModel
from rewarddance.generator import flow
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.probes import Gold, Prober, oracle_gold
from rewarddance.world.batches import captioned_batch
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
    generator: Sd3Generator,
    judge: RewardModel,
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
        prompts: what to train on; drawn from the embedded world when None.
        probe_prompts: what probes look at; when None, the first of `prompts`, or of the embedded world other prompts
            than it trains on.
        gold: measure of the probes that the training does not see; without one (None) hacking cannot be called.

    Raises:
        ConfigError: fewer prompts than processes, or a control that needs the embedded world.
    """
    criterion = config.criterion or str(getattr(judge, "criterion", "fidelity"))
    config = config.model_copy(update={"criterion": criterion})
    drawn, others = training_prompts(config.num_prompts, config.probe_prompts, config.seed) if not prompts else ((), ())
    chosen = tuple(prompts or drawn)
    _check(config, chosen, generator, own=prompts is not None)
    folder = RunFolder(out)
    if is_leader():
        folder.start("align", config.model_dump(mode="json"), resume=resume)
    wait_for_all()
    torch.manual_seed(config.seed)
    generator.add_lora(config.lora_rank, config.lora_alpha)
    if config.gradient_checkpointing:
        generator.transformer.enable_gradient_checkpointing()
        generator.vae.enable_gradient_checkpointing()
    amp = partial(autocast, generator.device, config.precision)
    loop = Loop(generator.trainable(), config.optim, config.loop, folder)
    bank = ReferenceBank(config.references, chosen, config.refl.num_steps, criterion, config.seed, config.sample_batch)
    prober = Prober(
        generator,
        judge,
        (probe_prompts or others or chosen)[: config.probe_prompts],
        config.probe_noises,
        config.refl.num_steps,
        criterion,
        config.seed,
        gold,
        config.sample_batch,
    )
    if resume and loop.resume():
        _restore(loop, bank, prober)
    elif config.algorithm == "refl":
        with amp():
            seen = prober.look(0)
        if is_leader():
            folder.log(0, seen)

    loop.keep = partial(_remember, loop, bank, prober)

    def step(index: int) -> Metrics:
        if config.algorithm == "sft":
            tally = Tally()
            tally.add(_sft_step(config, generator, index), 1)
            return _shared(tally, loop, ("loss",))
        rng = torch.Generator().manual_seed(seed_of(config.seed, "align-noise", index, rank()))
        with amp():
            if bank.is_due(index):
                bank.draw(generator, judge, index)
            rows = stream(config.seed, "align-batch", index).choice(len(chosen), config.batch_size)
            batch = [chosen[int(r)] for r in rows[rank() :: world_size()]]
        tally = Tally()
        for start in range(0, len(batch), config.micro_batch or len(batch)):
            part = batch[start : start + (config.micro_batch or len(batch))]
            with amp():
                found = refl_step(generator, judge, part, bank.of(part), config.refl, criterion, rng)
            (found["loss"] * (len(part) / config.batch_size)).backward()  # type: ignore[no-untyped-call]
            tally.add({k: float(v.detach()) for k, v in found.items()}, len(part))
        metrics = _shared(tally, loop, FIGURES)
        bank.note(metrics["reward"])
        for name, value in (("kl", metrics["kl"]), ("kl_weight", 1.0)):
            loop.extra[name] = 0.95 * loop.extra.get(name, 0.0) + 0.05 * value
        return metrics | {"win_rate": bank.win_rate, "references_from": bank.drawn_at}

    def validate(index: int) -> Metrics:
        if config.algorithm == "sft":
            return {}
        with loop.averaged(), amp():
            return prober.look(index)

    def stop(metrics: Metrics) -> str | None:
        over = config.max_kl > 0 and loop.extra.get("kl", 0.0) > config.max_kl * loop.extra.get("kl_weight", 0.0)
        return f"mean KL passed {config.max_kl}" if over else None

    with progress(title, "reward", "kl", "loss") as bar:

        def both(done: int, total: int, metrics: Metrics) -> None:
            bar(done, total, metrics)
            if report is not None:
                report(done, total, metrics)

        loop.run(step, validate, both, stop)
    if loop.ema is not None:
        loop.ema.swap(loop.parameters)
    if is_leader():
        generator.save_adapter(out / "adapter")
        if config.algorithm == "refl":
            write_seen(out / "adapter", chosen)
    wait_for_all()
    return out / "adapter"


def _check(config: AlignConfig, chosen: Sequence[str], generator: Sd3Generator, *, own: bool) -> None:
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


def _shared(tally: Tally, loop: Loop, names: Sequence[str]) -> Metrics:
    """Add the processes' gradients up; figures of all of them."""
    add_up_gradients(loop.parameters.values())
    return dict(tally.means(names))


def _sft_step(config: AlignConfig, generator: Sd3Generator, index: int) -> dict[str, float]:
    """Supervised flow matching on captioned renders, as in pretraining: the control."""
    place = index * world_size() + rank()
    prompts, images = captioned_batch(config.seed, "sft-control", place, config.batch_size // world_size())
    rng = torch.Generator().manual_seed(seed_of(config.seed, "sft-noise", place))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with autocast(generator.device):
        with torch.no_grad():
            x = generator.encode(pixels.to(generator.device)).float()
        t = torch.sigmoid(torch.randn(len(x), generator=rng)).to(x.device)
        noise = torch.randn(x.shape, generator=rng).to(x.device)
        v = generator.velocity(flow.add_noise(x, noise, t), t, generator.condition(prompts))
    loss = F.mse_loss(v.float(), noise - x)
    (loss / world_size()).backward()  # type: ignore[no-untyped-call]
    return {"loss": loss.item()}


def _remember(loop: Loop, bank: ReferenceBank, prober: Prober) -> None:
    """Put what is not weights into the checkpoint: references, running means, probes."""
    loop.extra |= {"drawn_at": bank.drawn_at, "win_rate": bank.win_rate}
    loop.extra["probe_steps"] = [p.step for p in prober.monitor.probes]
    tensors = {}
    if bank.pictures is not None:
        tensors["bank"] = bank.pictures
    if prober.references is not None:
        tensors["probe_references"] = prober.references
    if prober.monitor.probes:
        tensors["probe_proxy"] = torch.from_numpy(np.stack([p.proxy for p in prober.monitor.probes]))
        tensors["probe_gold"] = torch.from_numpy(np.stack([p.gold for p in prober.monitor.probes]))
    loop.extra_tensors = tensors


def _restore(loop: Loop, bank: ReferenceBank, prober: Prober) -> None:
    found = loop.extra_tensors
    bank.drawn_at, bank.win_rate = loop.extra.get("drawn_at", -1), loop.extra.get("win_rate", 0.5)
    bank.pictures, prober.references = found.get("bank"), found.get("probe_references")
    for i, s in enumerate(loop.extra.get("probe_steps", [])):
        prober.monitor.probes.append(Probe(s, found["probe_proxy"][i].numpy(), found["probe_gold"][i].numpy()))
