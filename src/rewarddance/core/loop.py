"""The one training loop, for judges and generators alike: optimizer, EMA, logging, checkpoints, resume, stopping.

An algorithm is a function `step(index) -> metrics` that computes its loss and calls `backward` itself;
batches are a pure function of the seed and the step index, so resuming needs no data-loader state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rewarddance.core.checkpoint import load_checkpoint, load_optimizer, optimizer_tensors, save_checkpoint
from rewarddance.core.errors import ConfigError, RunError, StoppedError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.muon import Muon
from rewarddance.core.parallel import any_of, is_leader, of_every_process, rank, wait_for_all
from rewarddance.core.progress import progress
from rewarddance.core.runs import RunFolder
from rewarddance.core.sharding import is_sharded, whole
from rewarddance.core.termination import Termination

Metrics = dict[str, Any]
Step = Callable[[int], Metrics]
Validate = Callable[[int], Metrics]
Progress = Callable[[int, int, Metrics], None]


class Ema:
    """Exponential moving average of the trainable parameters, in fp32, warmed up so that early steps count less.

    Decay at step n is `min(decay, (1 + n) / (10 + n))`.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.shadow = {k: p.detach().float().clone() for k, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in parameters.items():
            self.shadow[name].lerp_(p.detach().float(), 1 - decay)

    @torch.no_grad()
    def put(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Put the averaged weights in place; returns the live ones. The average is not touched, whatever is rounded."""
        live = {name: p.detach().clone() for name, p in parameters.items()}
        for name, p in parameters.items():
            p.copy_(self.shadow[name])
        return live


def trainable(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters that require gradients, named `module.parameter`."""
    return {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad}


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Warm-up, then constant, cosine to a tenth, or constant with a linear end over the last fifth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    passed = min(1.0, step / max(1, num_steps))
    if config.schedule == "cosine":
        warm *= 0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * passed))
    elif config.schedule == "linear_end":
        warm *= min(1.0, max(0.02, (1 - passed) / 0.2))
    return config.lr * warm


def build_optimizers(parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW over everything, or Muon over the matrices of the hidden layers and AdamW over the rest.

    Weight decay applies to matrices only, as usual. On CUDA AdamW is fused: torch's other default there holds one more
    copy of everything trained while gradients are still alive.
    """
    hidden: list[nn.Parameter] = []
    rest: dict[str, nn.Parameter] = dict(parameters)
    if config.name == "muon" and any(map(is_sharded, parameters.values())):
        raise ConfigError("optim.name: muon needs whole matrices and cannot train sharded weights; use adamw")
    if config.name == "muon":
        for name, p in parameters.items():
            if p.ndim == 2 and "embed" not in name and "head" not in name and "proj_out" not in name:
                hidden.append(rest.pop(name))
    decay = [p for p in rest.values() if p.ndim >= 2]
    plain = [p for p in rest.values() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    fused = True if rest and all(p.is_cuda for p in rest.values()) else None
    adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=fused)
    if not hidden:
        return [adam]
    muon = Muon(hidden, lr=config.lr, weight_decay=config.weight_decay)
    return [adam, muon]


class Loop:
    """State of one training run. `run()` trains to the end; everything else is what it is made of."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optim: OptimConfig,
        config: LoopConfig,
        folder: RunFolder,
    ) -> None:
        self.modules, self.optim, self.config, self.folder = dict(modules), optim, config, folder
        self.parameters = trainable(self.modules)
        self.optimizers = build_optimizers(self.parameters, optim)
        self.ema = Ema(self.parameters, optim.ema_decay) if optim.ema_decay else None
        self.step = 0
        self.extra: dict[str, Any] = {}
        """JSON-ready state that the algorithm wants kept with the checkpoint."""
        self.extra_tensors: dict[str, Tensor] = {}
        """Tensors that the algorithm wants kept with the checkpoint; `keep` fills them in."""
        self.keep: Callable[[], None] | None = None
        """Called before a checkpoint is written, to put the algorithm's state into `extra` and `extra_tensors`."""
        self.seconds = 0.0
        self.about = ""
        """What the step was about, in words, for errors: an algorithm that knows says so."""

    def save(self) -> None:
        """Write a checkpoint. Every data-parallel process calls it."""
        if self.keep is not None:
            self.keep()
        tensors: dict[str, Tensor] = {f"model/{k}": p for k, p in self.parameters.items()}
        tensors["rng/torch"] = of_every_process(torch.get_rng_state())
        if torch.cuda.is_available():
            tensors["rng/cuda"] = of_every_process(torch.cuda.get_rng_state())
        if self.ema is not None:
            tensors |= {f"ema/{k}": v for k, v in self.ema.shadow.items()}
        groups = []
        for i, optimizer in enumerate(self.optimizers):
            flat, saved = optimizer_tensors(optimizer)
            tensors |= {f"optim{i}/{k}": v for k, v in flat.items()}
            groups.append(saved)
        tensors |= {f"extra/{k}": v for k, v in self.extra_tensors.items()}
        state = {"groups": groups, "extra": self.extra, "seconds": self.seconds}
        save_checkpoint(self.folder.checkpoints, self.step, tensors, state, self.config.keep_checkpoints)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the modules hold the averaged weights, where an average is kept; that is what gets measured."""
        live = self.ema.put(self.parameters) if self.ema is not None else {}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in live.items():
                    self.parameters[name].copy_(weight)

    def resume(self) -> bool:
        """Load the newest checkpoint; False when there is none."""
        found = load_checkpoint(self.folder.checkpoints, like=self._like)
        if found is None:
            self._forget_after(-1)  # a kill before the first checkpoint: all of it is done again
            return False
        weights = found.part("model")
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(weights[name])
        if self.ema is not None:
            self.ema.shadow = {k: v.to(self.parameters[k].device) for k, v in found.part("ema").items()}
        for i, (optimizer, groups) in enumerate(zip(self.optimizers, found.state["groups"], strict=True)):
            load_optimizer(optimizer, found.part(f"optim{i}"), groups)
        torch.set_rng_state(_own(found.tensors["rng/torch"]))
        if torch.cuda.is_available() and "rng/cuda" in found.tensors:
            torch.cuda.set_rng_state(_own(found.tensors["rng/cuda"]))
        self.step, self.extra, self.seconds = found.step, found.state["extra"], found.state["seconds"]
        self.extra_tensors = found.part("extra")
        self._forget_after(self.step)
        return True

    def _like(self, name: str) -> Tensor | None:
        """The parameter that a tensor of the checkpoint belongs to, where it has the parameter's shape."""
        kind, _, key = name.partition("/")
        if kind in ("model", "ema"):
            return self.parameters[key]
        if not kind.startswith("optim"):
            return None
        index, _, what = key.partition(".")
        groups = self.optimizers[int(kind.removeprefix("optim"))].param_groups
        found: nn.Parameter = [p for g in groups for p in g["params"]][int(index)]
        return None if what == "step" else found

    def _forget_after(self, step: int) -> None:
        if is_leader():
            self.folder.forget_after(step)
        wait_for_all()

    def _update(self) -> float:
        rate = learning_rate(self.optim, self.step, self.config.num_steps)
        norm = whole(nn.utils.clip_grad_norm_(list(self.parameters.values()), self.optim.max_grad_norm))
        if not torch.isfinite(norm):
            where = f"step {self.step}" + (f" ({self.about})" if self.about else "")
            kept = f"{self.folder.path} keeps its last checkpoint"
            raise RunError(f"{where}: the gradient is {float(norm)}; {kept}, lower the learning rate and resume")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def fit(
        self,
        title: str,
        keys: Sequence[str],
        step: Step,
        validate: Validate | None = None,
        stop: Callable[[Metrics], str | None] | None = None,
        report: Progress | None = None,
    ) -> None:
        """`run` under a bar that shows the metrics named by `keys`; at the end the averaged weights are in place.

        Args:
            report: told of every step beside the bar.
        """
        with progress(title, *keys) as bar:

            def both(done: int, total: int, metrics: Metrics) -> None:
                bar(done, total, metrics)
                if report is not None:
                    report(done, total, metrics)

            self.run(step, validate, both, stop)
        if self.ema is not None:
            self.ema.put(self.parameters)

    def run(
        self,
        step: Step,
        validate: Validate | None = None,
        report: Progress | None = None,
        stop: Callable[[Metrics], str | None] | None = None,
    ) -> Literal["finished", "stopped"]:
        """Train until `num_steps` or a stop reason; a run that ended by one has ended when it is resumed too.

        Args:
            step: computes the loss of step `index`, calls `backward`, returns metrics for the log.
            validate: called every `validate_every` steps and at the end; its metrics join the line.
            report: called with (step, num_steps, metrics) after every step.
            stop: given the metrics of a step; a string ends the run and is logged as `stopped`.

        Raises:
            RunError: the time limit or a SIGTERM (a cluster that wants its machine back) came first; a checkpoint to
                resume from is written, and nothing is finished.
        """
        with Termination() as told:
            return self._run(step, validate, report, stop, told)

    def _run(
        self,
        step: Step,
        validate: Validate | None,
        report: Progress | None,
        stop: Callable[[Metrics], str | None] | None,
        told: Termination,
    ) -> Literal["finished", "stopped"]:
        cfg, began = self.config, time.monotonic()
        before, last_save = self.seconds, time.monotonic()
        if "stopped" in self.extra:
            return "stopped"
        while self.step < cfg.num_steps:
            metrics = step(self.step)
            metrics["grad_norm"] = self._update()
            self.step += 1
            self.seconds = before + time.monotonic() - began
            if self.ema is not None:
                self.ema.update(self.parameters, self.step)
            if validate is not None and (self.step % cfg.validate_every == 0 or self.step == cfg.num_steps):
                metrics |= validate(self.step)
            reason = stop(metrics) if stop is not None else None
            if is_leader() and (self.step % cfg.log_every == 0 or reason or self.step == cfg.num_steps):
                line = {**metrics, "seconds": round(self.seconds, 2)}
                self.folder.log(self.step, line | ({"stopped": reason} if reason else {}))
            if report is not None and is_leader():
                report(self.step, cfg.num_steps, metrics)
            over = cfg.max_seconds is not None and time.monotonic() - began > cfg.max_seconds
            late = any_of(over or told.stop) and self.step < cfg.num_steps
            due = any_of(time.monotonic() - last_save > cfg.save_seconds)
            if reason:
                self.extra["stopped"] = reason
            if due or late or reason or self.step % cfg.save_every == 0 or self.step == cfg.num_steps:
                self.save()
                last_save = time.monotonic()
            if reason:
                return "stopped"
            if late:
                reason = "out of time" if over else "told to stop"
                raise StoppedError(
                    f"{self.folder.path}: {reason} at step {self.step} of {cfg.num_steps}; resume goes on"
                )
        return "finished"


def _own(states: Tensor) -> Tensor:
    """This process's random state of those of all, (processes, S); of another number of them a neighbour's.

    A copy, since PyTorch 2.13 reads the state from where a view's storage begins, not from the view's own offset.
    """
    return states[rank() % len(states)].clone() if states.ndim == 2 else states
