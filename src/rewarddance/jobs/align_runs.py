"""What an alignment does in a step, at a validation, and what it keeps: reward feedback, or the supervised control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from rewarddance.align.config import AlignConfig
from rewarddance.align.references import ReferenceBank
from rewarddance.align.refl import FIGURES, refl_step
from rewarddance.core.device import autocast
from rewarddance.core.errors import JudgementError
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.monitors import Probe
from rewarddance.core.parallel import add_up_gradients, is_leader, rank, together, world_size
from rewarddance.core.progress import console
from rewarddance.core.protocols import Tunable
from rewarddance.core.streams import seed_of, stream
from rewarddance.core.tally import Tally
from rewarddance.core.types import RewardModel
from rewarddance.generator import flow
from rewarddance.jobs.probes import Prober
from rewarddance.world.batches import captioned_batch

MOST_SKIPPED, ALWAYS_SKIPPED = 0.05, 3
"""Share of steps, and number whatever the share, that may pass without training because the judge did not answer."""


@dataclass
class AlignRun:
    """The supervised control: flow matching on captioned renders, as in pretraining. No judge, no probes."""

    config: AlignConfig
    generator: Tunable
    loop: Loop

    def begin(self) -> None:
        """Before the first step of a run that is not resumed."""

    def step(self, index: int) -> Metrics:
        place = index * world_size() + rank()
        prompts, images = captioned_batch(
            self.config.seed, "sft-control", place, self.config.batch_size // world_size()
        )
        rng = torch.Generator().manual_seed(seed_of(self.config.seed, "sft-noise", place))
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        with autocast(self.generator.device):
            with torch.no_grad():
                x = self.generator.encode(pixels.to(self.generator.device)).float()
            t = torch.sigmoid(torch.randn(len(x), generator=rng)).to(x.device)
            noise = torch.randn(x.shape, generator=rng).to(x.device)
            v = self.generator.velocity(flow.add_noise(x, noise, t), t, self.generator.condition(prompts))
        loss = F.mse_loss(v.float(), noise - x)
        (loss / world_size()).backward()  # type: ignore[no-untyped-call]
        add_up_gradients(self.loop.parameters.values())
        tally = Tally()
        tally.add({"loss": loss.item()}, 1)
        return dict(tally.means(("loss",)))

    def validate(self, index: int) -> Metrics:
        return {}

    def stop(self, metrics: Metrics) -> str | None:
        """Why the run should end here; None to go on."""
        return None

    def remember(self) -> None:
        """Put what is not weights into the checkpoint that is about to be written."""

    def restore(self) -> None:
        """Take it out again."""


@dataclass
class ReflRun(AlignRun):
    """Reward feedback against a reference bank, watched by probes."""

    judge: RewardModel
    bank: ReferenceBank
    prober: Prober

    def __post_init__(self) -> None:
        self.amp = partial(autocast, self.generator.device, self.config.precision)

    def begin(self) -> None:
        """The first look; what comes before the first step is said, because with large pictures it takes minutes."""
        looks = len(self.prober.prompts) * self.prober.num_noises
        kind, each = self.config.references.kind, self.config.references.num_candidates
        drawn = 0 if kind == "none" else len(self.bank.prompts) * (each if kind == "best_of_n" else 1)
        if is_leader():
            text = f"before the first step: {looks:,} pictures to look at, {drawn:,} to choose references from"
            console.print(text, highlight=False)
        with self.amp():
            seen = self.prober.look(0)
        if is_leader():
            self.loop.folder.log(0, seen)

    def step(self, index: int) -> Metrics:
        """A step whose pictures the judge does not answer for is passed over; many such steps end the run."""
        try:
            if self.bank.is_due(index):
                with self.amp():
                    self.bank.draw(self.generator, self.judge, index)
            tally = together(lambda: self._passes(index), JudgementError)
        except JudgementError as error:
            return self._skipped(index, error)
        add_up_gradients(self.loop.parameters.values())
        metrics: Metrics = dict(tally.means(FIGURES))
        self.bank.note(metrics["reward"])
        for name, value in (("kl", metrics["kl"]), ("kl_weight", 1.0)):
            self.loop.extra[name] = 0.95 * self.loop.extra.get(name, 0.0) + 0.05 * value
        return metrics | {"win_rate": self.bank.win_rate, "references_from": self.bank.drawn_at}

    def _passes(self, index: int) -> Tally:
        """Gradients and figures of this process's share of the batch."""
        config, tally = self.config, Tally()
        rng = torch.Generator().manual_seed(seed_of(config.seed, "align-noise", index, rank()))
        rows = stream(config.seed, "align-batch", index).choice(len(self.bank.prompts), config.batch_size)
        batch = [self.bank.prompts[int(r)] for r in rows[rank() :: world_size()]]
        size = config.micro_batch or len(batch)
        for part in (batch[i : i + size] for i in range(0, len(batch), size)):
            found = self._one_pass(part, rng)
            (found["loss"] * (len(part) / config.batch_size)).backward()  # type: ignore[no-untyped-call]
            tally.add({k: float(v.detach()) for k, v in found.items()}, len(part))
        return tally

    def _one_pass(self, prompts: Sequence[str], rng: torch.Generator) -> dict[str, torch.Tensor]:
        criterion = self.config.criterion or ""
        with self.amp():
            return refl_step(
                self.generator, self.judge, prompts, self.bank.of(prompts), self.config.refl, criterion, rng
            )

    def _skipped(self, index: int, error: JudgementError) -> Metrics:
        for p in self.loop.parameters.values():
            p.grad = None
        skipped = self.loop.extra["skipped"] = self.loop.extra.get("skipped", 0) + 1
        if skipped > max(ALWAYS_SKIPPED, MOST_SKIPPED * (index + 1)):
            raise JudgementError(f"{skipped} of {index + 1} steps could not be judged; last: {error}")
        return {"skipped": str(error)}

    def validate(self, index: int) -> Metrics:
        try:
            with self.loop.averaged(), self.amp():
                return self.prober.look(index)
        except JudgementError as error:
            return {"probe/skipped": str(error)}

    def stop(self, metrics: Metrics) -> str | None:
        kl, weight = (self.loop.extra.get(name, 0.0) for name in ("kl", "kl_weight"))
        over = self.config.max_kl > 0 and kl > self.config.max_kl * weight
        return f"mean KL passed {self.config.max_kl}" if over else None

    def remember(self) -> None:
        loop, probes = self.loop, self.prober.monitor.probes
        loop.extra |= {"drawn_at": self.bank.drawn_at, "win_rate": self.bank.win_rate}
        loop.extra["probe_steps"] = [p.step for p in probes]
        tensors = {"bank": self.bank.pictures, "probe_references": self.prober.references}
        if probes:
            tensors["probe_proxy"] = torch.from_numpy(np.stack([p.proxy for p in probes]))
            tensors["probe_gold"] = torch.from_numpy(np.stack([p.gold for p in probes]))
        loop.extra_tensors = {k: v for k, v in tensors.items() if v is not None}

    def restore(self) -> None:
        found, extra = self.loop.extra_tensors, self.loop.extra
        self.bank.drawn_at, self.bank.win_rate = extra.get("drawn_at", -1), extra.get("win_rate", 0.5)
        self.bank.pictures, self.prober.references = found.get("bank"), found.get("probe_references")
        for i, step in enumerate(extra.get("probe_steps", [])):
            probe = Probe(step, found["probe_proxy"][i].numpy(), found["probe_gold"][i].numpy())
            self.prober.monitor.probes.append(probe)
