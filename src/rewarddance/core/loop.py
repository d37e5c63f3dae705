"""The training loop of judges and generators: optimizer, weight average, logging, checkpoints, resume, stopping.

An algorithm is a function `step(index) -> metrics` that computes its loss and calls `backward` itself. It may collect
rollouts first and make several updates (`Loop.update`). Everything in a step is a pure function of the seed, the step
index and the weights, so a run that is killed inside a step repeats that step when it is resumed.
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
from rewarddance.core.disk import kept
from rewarddance.core.errors import ConfigError, RunError, StoppedError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.muon import Muon
from rewarddance.core.parallel import all_gather_stacked, all_reduce_each_max, all_reduce_max, barrier, is_leader, rank
from rewarddance.core.progress import progress
from rewarddance.core.runs import RunFolder
from rewarddance.core.sharding import full_tensor, is_sharded
from rewarddance.core.termination import Termination
from rewarddance.core.trackers import check_trackers

Metrics = dict[str, Any]
StepFunction = Callable[[int], Metrics]
Validate = Callable[[int], Metrics]
OnStep = Callable[[int, int, Metrics], None]


class Ema:
    """Exponential moving average of the trainable parameters, in fp32. Early steps count less.

    The decay at step n is `min(decay, (1 + n) / (10 + n))`.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.shadow = {k: p.detach().float().clone() for k, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        if any(map(is_sharded, parameters.values())):
            for name, p in parameters.items():
                self.shadow[name].lerp_(p.detach().float(), 1 - decay)
        elif parameters:
            live = [p.detach().float() for p in parameters.values()]
            torch._foreach_lerp_([self.shadow[name] for name in parameters], live, 1 - decay)

    @torch.no_grad()
    def put(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Copy the average into the parameters; returns the weights that were there."""
        live = {name: p.detach().clone() for name, p in parameters.items()}
        for name, p in parameters.items():
            p.copy_(self.shadow[name])
        return live


def trainable(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters that require gradients, named `module.parameter`."""
    return {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad}


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then constant, cosine to a tenth, or constant with a linear decay over the last fifth (to 2%)."""
    factor = min(1.0, (step + 1) / max(1, config.warmup_steps))
    passed = min(1.0, step / max(1, num_steps))
    if config.schedule == "cosine":
        factor *= 0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * passed))
    elif config.schedule == "linear_end":
        factor *= min(1.0, max(0.02, (1 - passed) / 0.2))
    return config.lr * factor


OUTER_LAYERS = ("embed", "head", "proj_out", "conv_in", "conv_out", "quant_conv")
"""Parts of the names of first and last layers, which AdamW trains when `optim.name` is `muon`."""


def _is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix or a kernel. Gains and tables of shape (D, 1, 1) or (1, 6, D) are not."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter.shape[1:].numel()) > 1


def _decays(parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, also of one row, and to kernels."""
    return parameter.ndim == 2 or _is_matrix(parameter)


def build_optimizers(
    parameters: Mapping[str, nn.Parameter], config: OptimConfig, rate_factors: Mapping[str, float] | None = None
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices and kernels of hidden layers and AdamW for the rest.

    Weight decay applies to matrices and kernels, not to gains and biases of any shape. On CUDA AdamW is fused, because
    torch's default holds one more copy of all trained weights while gradients are still in memory.

    Args:
        rate_factors: AdamW trains these parameters, by name, at the learning rate times this factor, without decay.
    """
    hidden: list[nn.Parameter] = []
    rest: dict[str, nn.Parameter] = dict(parameters)
    faster = [(rest.pop(name), factor) for name, factor in (rate_factors or {}).items() if name in rest]
    if config.name == "muon" and any(map(is_sharded, parameters.values())):
        raise ConfigError("optim.name: muon needs whole matrices and cannot train sharded weights; use adamw")
    if config.name == "muon":
        for name, p in parameters.items():
            if _is_matrix(p) and not any(part in name for part in OUTER_LAYERS):
                hidden.append(rest.pop(name))
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest.values() if _decays(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in rest.values() if not _decays(p)], "weight_decay": 0.0},
    ]
    groups += [{"params": [p], "weight_decay": 0.0, "rate_factor": factor} for p, factor in faster]
    groups = [g for g in groups if g["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if groups or not hidden:
        fused = True if all(p.is_cuda for g in groups for p in g["params"]) else None
        optimizers.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused))
    if hidden:
        optimizers.append(Muon(hidden, lr=config.lr, weight_decay=config.weight_decay))
    return optimizers


def as_numbers(metrics: Metrics) -> Metrics:
    """The metrics with tensors of one element as Python numbers."""
    return {k: v.item() if isinstance(v, Tensor) else v for k, v in metrics.items()}


class Loop:
    """The state of one training run. `run()` trains to the end.

    Attributes:
        rate_factors: as in `build_optimizers`.
        extra, extra_tensors: the algorithm's own state, JSON-ready values and tensors; saved with every checkpoint.
        before_save: called before a checkpoint is written, to fill in `extra` and `extra_tensors`.
        context: what the current step works on, in words, for error messages.
        seconds: training time so far, over all resumed parts.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optim: OptimConfig,
        config: LoopConfig,
        folder: RunFolder,
        rate_factors: Mapping[str, float] | None = None,
    ) -> None:
        self.modules, self.optim, self.config, self.folder = dict(modules), optim, config, folder
        self.parameters, self.rate_factors = trainable(self.modules), rate_factors
        self.optimizers = build_optimizers(self.parameters, optim, rate_factors)
        self.ema = Ema(self.parameters, optim.ema_decay) if optim.ema_decay else None
        self.step = 0
        self.extra: dict[str, Any] = {}
        self.extra_tensors: dict[str, Tensor] = {}
        self.before_save: Callable[[], None] | None = None
        self.seconds = 0.0
        self.context = ""
        check_trackers(config.trackers)
        folder.trackers = config.trackers

    def save(self) -> None:
        """Write a checkpoint. A collective."""
        if self.before_save is not None:
            self.before_save()
        tensors: dict[str, Tensor] = {f"model/{k}": p for k, p in self.parameters.items()}
        tensors["rng/torch"] = all_gather_stacked(torch.get_rng_state())
        if torch.cuda.is_available():
            tensors["rng/cuda"] = all_gather_stacked(torch.cuda.get_rng_state())
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
        """A context in which the modules hold the averaged weights, if there is an average. For measurements."""
        live = self.ema.put(self.parameters) if self.ema is not None else {}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in live.items():
                    self.parameters[name].copy_(weight)

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of the trained weights as they are now; in `averaged`, of their average."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def go_back(self, snapshot: Mapping[str, Tensor], rate_factor: float) -> None:
        """Take the weights of a snapshot and multiply the learning rate of all further steps.

        The average of the weights begins again there, and the optimizer forgets its moments.
        """
        for name, p in self.parameters.items():
            p.copy_(snapshot[name])
            if self.ema is not None:
                self.ema.shadow[name].copy_(snapshot[name])
        self.optimizers = build_optimizers(self.parameters, self.optim, self.rate_factors)
        self.extra["rate_factor"] = self.extra.get("rate_factor", 1.0) * rate_factor

    def resume(self) -> bool:
        """Load the newest checkpoint; returns False when there is none."""
        checkpoint = load_checkpoint(self.folder.checkpoints, like=self._parameter_of)
        if checkpoint is None:
            self._forget_after(-1)  # killed before the first checkpoint: everything is done again
            return False
        weights = checkpoint.part("model")
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(weights[name])
        if self.ema is not None:
            self.ema.shadow = {k: v.to(self.parameters[k].device) for k, v in checkpoint.part("ema").items()}
        for i, (optimizer, groups) in enumerate(zip(self.optimizers, checkpoint.state["groups"], strict=True)):
            load_optimizer(optimizer, checkpoint.part(f"optim{i}"), groups)
        torch.set_rng_state(_state_of_this_rank(checkpoint.tensors["rng/torch"]))
        if torch.cuda.is_available() and "rng/cuda" in checkpoint.tensors:
            torch.cuda.set_rng_state(_state_of_this_rank(checkpoint.tensors["rng/cuda"]))
        self.step, self.extra = checkpoint.step, checkpoint.state["extra"]
        self.seconds = checkpoint.state["seconds"]
        self.extra_tensors = checkpoint.part("extra")
        self._forget_after(self.step)
        return True

    def _parameter_of(self, name: str) -> Tensor | None:
        """The parameter whose shape a tensor of the checkpoint has; None for other tensors."""
        section, _, key = name.partition("/")
        if section in ("model", "ema"):
            return self.parameters[key]
        if not section.startswith("optim"):
            return None
        index, _, entry = key.partition(".")
        groups = self.optimizers[int(section.removeprefix("optim"))].param_groups
        parameter: nn.Parameter = [p for g in groups for p in g["params"]][int(index)]
        return None if entry == "step" else parameter

    def _forget_after(self, step: int) -> None:
        if is_leader():
            self.folder.forget_after(step)
        barrier()

    def update(self) -> float:
        """Take an optimizer step with the gradients that are there, and clear them; returns their norm.

        `run` calls it once at the end of every step. A step that makes several updates calls it between them.

        Raises:
            RunError: the gradient is not finite.
        """
        rate = learning_rate(self.optim, self.step, self.config.num_steps) * self.extra.get("rate_factor", 1.0)
        norm = full_tensor(nn.utils.clip_grad_norm_(list(self.parameters.values()), self.optim.max_grad_norm))
        size = float(norm)  # here the CPU waits for a GPU
        if not math.isfinite(size):
            where = f"step {self.step}" + (f" ({self.context})" if self.context else "")
            after = kept(self.folder.checkpoints)
            raise RunError(f"{where}: the gradient is {size}; lower the learning rate (--optim.lr); {after}")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_factor", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.parameters, self.step + 1)
        return size

    def fit(
        self,
        title: str,
        keys: Sequence[str],
        step: StepFunction,
        validate: Validate | None = None,
        stop: Callable[[Metrics], str | None] | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        """`run` with a progress bar that shows the metrics named by `keys`. Leaves the averaged weights in place.

        Args:
            on_step: called with (step, num_steps, metrics) after every step.
        """
        with progress(title, *keys) as bar:

            def report(done: int, total: int, metrics: Metrics) -> None:
                bar(done, total, metrics)
                if on_step is not None:
                    on_step(done, total, metrics)

            try:
                self.run(step, validate, report, stop)
            finally:
                self.folder.close_trackers()
        if self.ema is not None:
            self.ema.put(self.parameters)

    def run(
        self,
        step: StepFunction,
        validate: Validate | None = None,
        on_step: OnStep | None = None,
        stop: Callable[[Metrics], str | None] | None = None,
    ) -> Literal["finished", "stopped"]:
        """Train until `num_steps` or a stop reason. A run that was stopped for a reason stays stopped when resumed.

        Args:
            step: computes the loss of step `index`, calls `backward`, returns metrics for the log: numbers, or tensors
                of one element, which are read after the update, so that a GPU does not wait for them.
            validate: called every `validate_every` steps and at the end; its metrics join the line of that step.
            on_step: called with (step, num_steps, metrics) after every step.
            stop: gets the metrics of a step; a string ends the run and is logged as `stopped`.

        Raises:
            StoppedError: the time limit was reached, or a SIGTERM or a first Ctrl-C came. The step is finished, and a
                checkpoint to resume from is written.
        """
        with Termination() as signals:
            outcome = self._run(step, validate, on_step, stop, signals)
        if number := all_reduce_max(signals.signal):  # it came during the last step or its save
            raise self._stopped("told to stop", number)
        return outcome

    def _stopped(self, why: str, number: int) -> StoppedError:
        at = f"step {self.step} of {self.config.num_steps}"
        return StoppedError(f"{self.folder.path}: {why} at {at}; resume goes on from there", number)

    def _run(
        self,
        step: StepFunction,
        validate: Validate | None,
        on_step: OnStep | None,
        stop: Callable[[Metrics], str | None] | None,
        signals: Termination,
    ) -> Literal["finished", "stopped"]:
        cfg, began = self.config, time.monotonic()
        seconds_before, last_save = self.seconds, time.monotonic()
        if "stopped" in self.extra:
            return "stopped"
        while self.step < cfg.num_steps:
            metrics = step(self.step)
            metrics["grad_norm"] = self.update()
            metrics = as_numbers(metrics)
            self.step += 1
            self.seconds = seconds_before + time.monotonic() - began
            is_last = self.step == cfg.num_steps
            is_validated = validate is not None and (self.step % cfg.validate_every == 0 or is_last)
            if validate is not None and is_validated:
                metrics |= as_numbers(validate(self.step))
            reason = stop(metrics) if stop is not None else None
            if is_leader() and (self.step % cfg.log_every == 0 or is_validated or is_last or reason):
                line = {**metrics, "seconds": round(self.seconds, 2)}
                self.folder.log(self.step, line | ({"stopped": reason} if reason else {}))
            if on_step is not None and is_leader():
                on_step(self.step, cfg.num_steps, metrics)
            out_of_time = cfg.max_seconds is not None and time.monotonic() - began > cfg.max_seconds
            due = time.monotonic() - last_save > cfg.save_seconds
            # one collective, because every process must come to the same decisions
            number, is_late, save_is_due = all_reduce_each_max(signals.signal, int(out_of_time), int(due))
            interrupted = (number > 0 or is_late > 0) and self.step < cfg.num_steps
            if reason:
                self.extra["stopped"] = reason
            if save_is_due or interrupted or reason or self.step % cfg.save_every == 0 or self.step == cfg.num_steps:
                self.save()
                last_save = time.monotonic()
            if reason:
                return "stopped"
            if interrupted:
                raise self._stopped("told to stop" if number else "out of time", number)
        return "finished"


def _state_of_this_rank(states: Tensor) -> Tensor:
    """This process's random state out of (W, S), saved by W processes. With more than W processes some share a state.

    The clone is needed: PyTorch 2.13's set_rng_state reads from the start of the storage and ignores a view's offset.
    """
    return states[rank() % len(states)].clone() if states.ndim == 2 else states
