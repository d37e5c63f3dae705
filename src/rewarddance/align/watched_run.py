"""The shared part of runs that learn from a judge: the reference bank, the probes, and their state in checkpoints."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rewarddance.align.config import PULLS, AlignConfig
from rewarddance.align.probes import Prober
from rewarddance.align.references import ReferenceBank
from rewarddance.align.run import AlignRun
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.mapped import map_bytes
from rewarddance.core.monitors import ProbeResult
from rewarddance.core.parallel import is_leader
from rewarddance.core.progress import say
from rewarddance.core.protocols import Tunable
from rewarddance.core.types import RewardModel

RATE_FACTOR = 0.5
"""The learning rate is multiplied by this when a run goes back. With the old rate the run would fail again."""

PULL_FACTOR = 2.0
"""The weight of the pull is multiplied by this at an alarm (`on_hacking: raise_kl`)."""
MAX_PULL_FACTOR = 16.0
"""Largest factor by which all alarms together multiply the weight of the pull."""


@dataclass
class WatchedRun(AlignRun, ABC):
    """Base of the runs with a judge. Probes watch them; references are drawn if the configuration uses them."""

    config: AlignConfig
    generator: Tunable
    loop: Loop
    judge: RewardModel
    bank: ReferenceBank
    prober: Prober
    good: dict[str, Tensor] = field(init=False, default_factory=dict)
    """Weights of the best probe so far, and its step; kept for `on_hacking: rollback`."""
    good_step: int = field(init=False, default=0)

    def begin(self) -> None:
        """The first probe. Prints how much is drawn before the first step, because large pictures take minutes."""
        probes = len(self.prober.prompts) * self.prober.num_noises
        references = self.bank.num_drawn if self.config.uses_references else 0
        if is_leader():
            say(f"before the first step: {probes:,} pictures for probes, {references:,} to choose references from")
        metrics = self._probe(0)
        if is_leader():
            self.loop.folder.log(0, metrics)

    def validate(self, index: int) -> Metrics:
        metrics = self._probe(index)
        return metrics | self._guard(index)

    def _probe(self, index: int) -> Metrics:
        """Probe the averaged weights. With `on_hacking: rollback`, keep them if they are the best so far."""
        with self.loop.averaged():
            metrics = self.prober.probe(index)
            monitor = self.prober.monitor
            if self.config.on_hacking == "rollback" and monitor.measured_at(index) and monitor.is_best:
                self.good, self.good_step = self.loop.snapshot(), index
        return metrics

    def _guard(self, index: int) -> Metrics:
        """Act on an alarm."""
        monitor, action = self.prober.monitor, self.config.on_hacking
        if not monitor.measured_at(index) or (alarm := monitor.alarm()) is None:
            return {}
        text = alarm
        if action == "rollback":
            text += f"; went back to step {self.good_step}"
        elif action == "raise_kl":
            self.loop.extra["pull_factor"] = min(MAX_PULL_FACTOR, self.pull_factor * PULL_FACTOR)
            name = self.config.algorithm
            text += f"; {name}.{PULLS[name]} is {self.pull_factor * self.config.pull:g}"
        if is_leader():
            say(f"step {index}: {text}")
        if action == "rollback" and self.good:
            self.loop.go_back(self.good, RATE_FACTOR)
            monitor.forget_after(self.good_step)
            if self.bank.drawn_at > self.good_step:  # the references are those of the policy that is given up
                self.bank.drawn_at = -1
            self.loop.extra |= {"kl": 0.0, "kl_weight": 0.0}
            self.went_back()
        return {"alarm": text}

    @property
    def pull_factor(self) -> float:
        """Factor by which alarms have multiplied the weight of the pull so far."""
        return float(self.loop.extra.get("pull_factor", 1.0))

    def note_kl(self, kl: float | None) -> None:
        """Take a step's KL into the running mean that `stop` compares with `max_kl`; None for a step without one."""
        if kl is None:
            return
        for name, value in (("kl", kl), ("kl_weight", 1.0)):
            self.loop.extra[name] = 0.95 * self.loop.extra.get(name, 0.0) + 0.05 * value

    def note_win_rate(self, rate: float | None) -> Metrics:
        """Take a step's mean P(better than the reference) into the bank; returns the metrics of the bank."""
        if rate is not None:
            self.bank.note(rate)
        metrics: Metrics = {"win_rate": self.bank.win_rate, "references_from": self.bank.drawn_at}
        return metrics | ({"references_unranked": self.bank.num_unranked} if self.bank.num_unranked else {})

    def stop(self, metrics: Metrics) -> str | None:
        kl, weight = (self.loop.extra.get(name, 0.0) for name in ("kl", "kl_weight"))
        if "alarm" in metrics and self.config.on_hacking in ("stop", "rollback"):
            return str(metrics["alarm"]) if self.config.on_hacking == "stop" else None
        max_kl = self.config.max_kl
        if max_kl and kl > max_kl * weight:
            return f"mean KL passed {max_kl}"
        return f"KL of the probes passed {max_kl}" if max_kl and metrics.get("probe/kl", 0.0) > max_kl else None

    def save_state(self) -> None:
        loop, probes = self.loop, self.prober.monitor.probes
        loop.extra["probe_steps"] = [p.step for p in probes]
        before = loop.extra.get("drawn_at", -1)
        tensors = {"bank": self.bank.pictures, "probe_references": self.prober.references}
        clips = {k: list(v.shape) for k, v in tensors.items() if v is not None and v.ndim == 5}
        loop.extra["clips"] = clips  # their pixels are in files of their own
        tensors = {k: v for k, v in tensors.items() if k not in clips}
        if is_leader():
            self.bank.forget_files({before, self.bank.drawn_at})  # the newest checkpoint still needs the first one
        loop.extra |= {"drawn_at": self.bank.drawn_at, "win_rate": self.bank.win_rate}
        if probes:
            tensors["probe_proxy"] = torch.from_numpy(np.stack([p.proxy for p in probes]))
            tensors["probe_gold"] = torch.from_numpy(np.stack([p.gold for p in probes]))
        loop.extra["good_step"] = self.good_step
        good = {f"good/{k}": v for k, v in self.good.items()}
        loop.extra_tensors = good | {k: v for k, v in tensors.items() if v is not None}

    def load_state(self) -> None:
        tensors, extra = self.loop.extra_tensors, self.loop.extra
        self.bank.drawn_at, self.bank.win_rate = extra.get("drawn_at", -1), extra.get("win_rate", 0.5)
        self.bank.pictures, self.prober.references = tensors.get("bank"), tensors.get("probe_references")
        shapes = extra.get("clips", {})
        if "bank" in shapes and self.bank.drawn_at >= 0:
            self.bank.pictures = map_bytes(self.bank.file(self.bank.drawn_at), shapes["bank"])
        if "probe_references" in shapes:
            self.prober.references = map_bytes(self.prober.file, shapes["probe_references"])
        self.good_step = extra.get("good_step", 0)
        self.good = {k.removeprefix("good/"): v for k, v in tensors.items() if k.startswith("good/")}
        for i, step in enumerate(extra.get("probe_steps", [])):
            result = ProbeResult(step, tensors["probe_proxy"][i].numpy(), tensors["probe_gold"][i].numpy())
            self.prober.monitor.probes.append(result)
