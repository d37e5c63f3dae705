"""ReFL as a run: batches, the reference bank, probes, and what to do about refused judgements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rewarddance.align.config import AlignConfig
from rewarddance.align.probes import Prober
from rewarddance.align.references import ReferenceBank
from rewarddance.align.refl import METRICS, REWARD_METRICS, refl_step
from rewarddance.align.run import AlignRun
from rewarddance.core.averages import WeightedMeans
from rewarddance.core.errors import JudgementError
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.monitors import ProbeResult
from rewarddance.core.parallel import all_reduce_gradients, all_reduce_sum, is_leader, rank, world_size
from rewarddance.core.progress import say
from rewarddance.core.protocols import Tunable
from rewarddance.core.streams import seed_of, stream
from rewarddance.core.types import RewardModel

MOST_REFUSED = 0.05
"""Share of judged pictures that may be refused; a run with more of them ends."""
FREE_STEPS = 3
"""Steps at the start in which any number may be refused."""


@dataclass
class ReflRun(AlignRun):
    """Reward feedback against a reference bank, watched by probes."""

    config: AlignConfig
    generator: Tunable
    loop: Loop
    judge: RewardModel
    bank: ReferenceBank
    prober: Prober

    def begin(self) -> None:
        """The first probe. Says how much is drawn before the first step, since large pictures take minutes."""
        probes = len(self.prober.prompts) * self.prober.num_noises
        kind, each = self.config.references.kind, self.config.references.num_candidates
        references = 0 if kind == "none" else len(self.bank.prompts) * (each if kind == "best_of_n" else 1)
        if is_leader():
            say(f"before the first step: {probes:,} pictures for probes, {references:,} to choose references from")
        metrics = self.prober.probe(0)
        if is_leader():
            self.loop.folder.log(0, metrics)

    def step(self, index: int) -> Metrics:
        if self.bank.is_due(index):
            self.bank.draw(self.generator, self.judge, index)
        means, refused = self._passes(index)
        all_reduce_gradients(self.loop.parameters.values())
        metrics: Metrics = dict(means.all_reduce(METRICS))
        if metrics["reward"] is not None:
            self.bank.note(metrics["reward"])
        for name, value in (("kl", metrics["kl"]), ("kl_weight", 1.0)):
            self.loop.extra[name] = 0.95 * self.loop.extra.get(name, 0.0) + 0.05 * value
        metrics |= {"win_rate": self.bank.win_rate, "references_from": self.bank.drawn_at}
        if self.bank.num_unranked:
            metrics["references_unranked"] = self.bank.num_unranked
        return metrics | self._count_refused(index, refused)

    def _passes(self, index: int) -> tuple[WeightedMeans, int]:
        """Gradients and metrics of this process's share of the batch; how many of its pictures were refused."""
        config, means, refused = self.config, WeightedMeans(), 0
        rng = torch.Generator().manual_seed(seed_of(config.seed, "align-noise", index, rank()))
        rows = stream(config.seed, "align-batch", index).choice(len(self.bank.prompts), config.batch_size)
        batch = [self.bank.prompts[int(r)] for r in rows[rank() :: world_size()]]
        size = config.micro_batch or len(batch)
        for part in (batch[i : i + size] for i in range(0, len(batch), size)):
            out = refl_step(
                self.generator, self.judge, part, self.bank.of(part), config.refl, config.criterion or "", rng
            )
            (out["loss"] * (len(part) / config.batch_size)).backward()  # type: ignore[no-untyped-call]
            values = {k: float(v.detach()) for k, v in out.items()}
            num_answered = values.pop("num_answered")
            refused += len(part) - int(num_answered)
            means.add(values, len(part), dict.fromkeys(REWARD_METRICS, num_answered))
        return means, refused

    def _count_refused(self, index: int, refused: int) -> Metrics:
        """Raises `JudgementError` where too many pictures have been refused so far."""
        here = int(all_reduce_sum(torch.tensor(refused)))
        if not here:
            return {}
        total = self.loop.extra["refused"] = self.loop.extra.get("refused", 0) + here
        judged = (index + 1) * self.config.batch_size
        if total > max(FREE_STEPS * self.config.batch_size, MOST_REFUSED * judged):
            raise JudgementError(f"the judge refused {total} of {judged} pictures; last in step {index}")
        return {"refused": here}

    def validate(self, index: int) -> Metrics:
        with self.loop.averaged():
            return self.prober.probe(index)

    def stop(self, metrics: Metrics) -> str | None:
        kl, weight = (self.loop.extra.get(name, 0.0) for name in ("kl", "kl_weight"))
        over = self.config.max_kl > 0 and kl > self.config.max_kl * weight
        return f"mean KL passed {self.config.max_kl}" if over else None

    def save_state(self) -> None:
        loop, probes = self.loop, self.prober.monitor.probes
        loop.extra |= {"drawn_at": self.bank.drawn_at, "win_rate": self.bank.win_rate}
        loop.extra["probe_steps"] = [p.step for p in probes]
        tensors = {"bank": self.bank.pictures, "probe_references": self.prober.references}
        if probes:
            tensors["probe_proxy"] = torch.from_numpy(np.stack([p.proxy for p in probes]))
            tensors["probe_gold"] = torch.from_numpy(np.stack([p.gold for p in probes]))
        loop.extra_tensors = {k: v for k, v in tensors.items() if v is not None}

    def load_state(self) -> None:
        tensors, extra = self.loop.extra_tensors, self.loop.extra
        self.bank.drawn_at, self.bank.win_rate = extra.get("drawn_at", -1), extra.get("win_rate", 0.5)
        self.bank.pictures, self.prober.references = tensors.get("bank"), tensors.get("probe_references")
        for i, step in enumerate(extra.get("probe_steps", [])):
            result = ProbeResult(step, tensors["probe_proxy"][i].numpy(), tensors["probe_gold"][i].numpy())
            self.prober.monitor.probes.append(result)
