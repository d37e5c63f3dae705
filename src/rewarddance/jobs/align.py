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
from rewarddance.align.refl import refl_step
from rewarddance.core.device import autocast
from rewarddance.core.errors import ConfigError
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.media import Media
from rewarddance.core.monitors import Probe
from rewarddance.core.parallel import (
    add_up_gradients,
    is_leader,
    mean_over_processes,
    rank,
    wait_for_all,
    world_size,
)
from rewarddance.core.progress import progress
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import stream
from rewarddance.core.types import RewardModel
from rewarddance.generator import flow
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.probes import Gold, Prober, oracle_gold
from rewarddance.world.batches import captioned_batch
from rewarddance.world.grammar import WORDINGS, phrase
from rewarddance.world.sampling import sample_pair
from rewarddance.world.scene import CANVAS


def training_prompts(num: int, seed: int) -> tuple[str, ...]:
    """Distinct training prompts of the embedded world."""
    rng, found = stream(seed, "align-prompts"), dict[str, None]()
    while len(found) < num:
        found[phrase(sample_pair(rng)[0], WORDINGS[int(rng.integers(len(WORDINGS)))])] = None
    return tuple(found)


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
        probe_prompts: what probes look at; other prompts of the embedded world when None, or the first of `prompts`.
        gold: measure of the probes that the training does not see; without one (None) hacking cannot be called.

    Raises:
        ConfigError: fewer prompts than processes, or a control that needs the embedded world.
    """
    criterion = config.criterion or str(getattr(judge, "criterion", "fidelity"))
    config = config.model_copy(update={"criterion": criterion})
    chosen = tuple(prompts or training_prompts(config.num_prompts, config.seed))
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
    if probe_prompts is None:
        probe_prompts = chosen if prompts else training_prompts(config.probe_prompts, config.seed + 1)
    prober = Prober(
        generator,
        judge,
        probe_prompts[: config.probe_prompts],
        config.probe_noises,
        config.refl.num_steps,
        criterion,
        config.seed,
        gold,
        config.sample_batch,
    )
    if resume and loop.resume():
        _restore(loop, bank, prober)
    elif config.algorithm == "refl" and is_leader():
        with amp():
            folder.log(0, prober.look(0))

    loop.keep = partial(_remember, loop, bank, prober)

    def step(index: int) -> Metrics:
        if config.algorithm == "sft":
            return _shared(_sft_step(config, generator, index), loop, 1.0)
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + index + 15_485_863 * rank())
        with amp():
            if bank.is_due(index):
                bank.draw(generator, judge, index)
            rows = stream(config.seed, "align-batch", index).choice(len(chosen), config.batch_size)
            batch = [chosen[int(r)] for r in rows[rank() :: world_size()]]
        passes = []
        for start in range(0, len(batch), config.micro_batch or len(batch)):
            part = batch[start : start + (config.micro_batch or len(batch))]
            with amp():
                references = bank.of(part, generator.device)
                found = refl_step(generator, judge, part, references, config.refl, criterion, rng)
            (found["loss"] * (len(part) / config.batch_size)).backward()  # type: ignore[no-untyped-call]
            passes.append((len(part), {k: float(v.detach()) for k, v in found.items()}))
        metrics = _shared(over_passes(passes), loop, len(batch))
        bank.note(metrics["reward"])
        loop.extra["kl"] = 0.95 * loop.extra.get("kl", 0.0) + 0.05 * metrics["kl"]
        return metrics | {"win_rate": bank.win_rate, "references_from": bank.drawn_at}

    def validate(index: int) -> Metrics:
        if config.algorithm == "sft" or not is_leader():
            return {}
        with loop.averaged(), amp():
            return prober.look(index)

    def stop(metrics: Metrics) -> str | None:
        over = config.max_kl > 0 and loop.extra.get("kl", 0.0) > config.max_kl
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


def over_passes(passes: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Figures of a batch from those of its parts (pictures, figures); the spread is that of the whole batch."""
    whole = sum(n for n, _ in passes)
    mean = {k: sum(n * figures[k] for n, figures in passes) / whole for k in passes[0][1]}
    square = sum(n * (f["reward_std"] ** 2 + f["reward"] ** 2) for n, f in passes) / whole
    return mean | {"reward_std": max(0.0, square - mean["reward"] ** 2) ** 0.5}


def _shared(figures: dict[str, float], loop: Loop, weight: float) -> Metrics:
    """Add the processes' gradients up; figures averaged over all of them."""
    add_up_gradients(loop.parameters.values())
    return dict(mean_over_processes(figures, weight))


def _sft_step(config: AlignConfig, generator: Sd3Generator, index: int) -> dict[str, float]:
    """Supervised flow matching on captioned renders, as in pretraining: the control."""
    place = index * world_size() + rank()
    prompts, images = captioned_batch(config.seed, "sft-control", place, config.batch_size // world_size())
    rng = torch.Generator().manual_seed(config.seed * 1_000_003 + place)
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
    if bank.pictures:
        tensors["bank"] = torch.cat([bank.pictures[p].frames for p in bank.prompts])
    if prober.references is not None:
        tensors["probe_references"] = torch.cat([m.frames for m in prober.references])
    if prober.monitor.probes:
        tensors["probe_proxy"] = torch.from_numpy(np.stack([p.proxy for p in prober.monitor.probes]))
        tensors["probe_gold"] = torch.from_numpy(np.stack([p.gold for p in prober.monitor.probes]))
    loop.extra_tensors = tensors


def _restore(loop: Loop, bank: ReferenceBank, prober: Prober) -> None:
    device = prober.generator.device
    found = {k: v if k in ("probe_proxy", "probe_gold") else v.to(device) for k, v in loop.extra_tensors.items()}
    bank.drawn_at, bank.win_rate = loop.extra.get("drawn_at", -1), loop.extra.get("win_rate", 0.5)
    if "bank" in found:
        bank.pictures = {
            p: Media(x[None].cpu(), origin="generator") for p, x in zip(bank.prompts, found["bank"], strict=True)
        }
    if "probe_references" in found:
        prober.references = [Media(x[None], origin="generator") for x in found["probe_references"]]
    for i, s in enumerate(loop.extra.get("probe_steps", [])):
        prober.monitor.probes.append(Probe(s, found["probe_proxy"][i].numpy(), found["probe_gold"][i].numpy()))
