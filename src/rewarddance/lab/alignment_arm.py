"""One arm of `study alignment`: trains it, watches its KL and its work, and keeps the adapter of every mark."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewarddance.align.config import AlignConfig
from rewarddance.align.divergence import NUM_PROMPTS, KlProbe
from rewarddance.align.work_config import Budget
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.protocols import Tunable
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.task import Task
from rewarddance.core.types import RewardModel
from rewarddance.evaluate.generator import fixed_samples, measure
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.load import load_generator_of, load_judge, load_task
from rewarddance.lab.alignment_config import MAX_TIMES, AlignmentStudyConfig, Mark
from rewarddance.reward.composite import load_standards, save_standards
from rewarddance.reward.standardised import Standardised, standard_of

KL_SEED, CURVE_SEED, STANDARD_SEED = 0, 3, 4
"""Seeds of the states, the curve's noises and the pictures of a standard. All arms and seeds share them."""


def kl_probe(generator: Tunable, task: Task, num_steps: int) -> KlProbe:
    """The estimator of the KL that all arms share: fixed states of development prompts of all categories."""
    prompts = task.development()
    return KlProbe(generator, prompts[:: len(prompts) // NUM_PROMPTS][:NUM_PROMPTS], num_steps, KL_SEED)


@dataclass
class ArmWatcher:
    """Measures the averaged weights of a run, keeps adapters at its marks, and ends the run after the last one.

    Attributes:
        kl: KL to the start, nats a dimension (`KlProbe.measure`); curve: the oracle's value on development prompts.
        kl_every, curve_every: generator passes between two measurements.
        folder: each mark has a folder `marks/MARK` in it, with the adapter and `mark.json`.
        target: the KL of the mark `kl`; None for an arm that matches none.
    """

    generator: Tunable
    folder: Path
    kl: Callable[[], float]
    curve: Callable[[], float]
    kl_every: int
    curve_every: int
    budget: Budget | None = None
    target: float | None = None
    _since: float = field(default_factory=time.process_time)
    _measured_for: float = 0.0
    """Seconds of the last measurement. `Loop.seconds` contains them from the next step on, so they are added to
    `extra["measuring"]` at the next step. If the run is resumed before that step, neither contains them."""

    def after_step(self, loop: Loop, metrics: Metrics) -> str | None:
        extra = loop.extra
        marks: dict[str, int] = extra.setdefault("marks", {})
        extra["cpu_seconds"] = extra.get("cpu_seconds", 0.0) + time.process_time() - self._since
        extra["measuring"] = extra.get("measuring", 0.0) + self._measured_for
        began, is_last = time.monotonic(), loop.step == loop.config.num_steps
        spent = self.budget is not None and "work" not in marks and self.budget.used_up(extra["work"])
        curve_is_due = self._is_due(extra, "curve_at", self.curve_every) or is_last or spent
        kl_is_due = self._is_due(extra, "kl_at", self.kl_every) or curve_is_due
        with loop.averaged():
            if kl_is_due:
                metrics["study/kl"] = self.kl()
            if curve_is_due:
                metrics["study/gold"] = self.curve()
            reached = self.target is not None and metrics.get("study/kl", -1.0) > self.target
            for name, is_here in (("work", spent), ("kl", reached)):
                if is_here and name not in marks:
                    marks[name] = loop.step
                    self.keep(name, loop.step, metrics["study/kl"], loop.seconds, extra, reached=True)
        self._measured_for = time.monotonic() - began
        metrics |= {"study/cpu_seconds": extra["cpu_seconds"], "study/measuring": extra["measuring"]}
        self._since = time.process_time()
        return self._reason(marks, loop.step)

    def _is_due(self, extra: dict[str, Any], name: str, every: int) -> bool:
        """Whether `every` passes or more have gone by since the last measurement. If so, this one is recorded."""
        passes = extra["work"]["generator_passes"]
        if passes - extra.get(name, 0) < every:
            return False
        extra[name] = passes
        return True

    def keep(self, mark: str, step: int, kl: float, seconds: float, extra: dict[str, Any], *, reached: bool) -> None:
        """Save the weights as they are now as a mark's adapter, with what the run has used so far."""
        folder = self.folder / "marks" / mark
        folder.mkdir(parents=True, exist_ok=True)
        self.generator.save_adapter(folder / "adapter")
        used = {"work": extra.get("work", {}), "cpu_seconds": extra.get("cpu_seconds", 0.0)}
        used["seconds"] = seconds - extra.get("measuring", 0.0)
        write_json(folder / "mark.json", {"step": step, "kl": kl, "reached": reached, **used})

    def _reason(self, marks: dict[str, int], step: int) -> str | None:
        """Why the run ends: all its marks are passed, or three times the steps of its budget were not enough."""
        mark_names = [n for n, has in (("work", self.budget), ("kl", self.target)) if has is not None]
        if mark_names and all(name in marks for name in mark_names):
            return ", ".join("budget used up" if n == "work" else f"KL passed {self.target:.5f}" for n in mark_names)
        if "kl" in mark_names and "work" in marks and step >= MAX_TIMES * marks["work"]:
            return f"KL {self.target:.5f} not reached in {MAX_TIMES} times the steps"
        return None


def train_arm(study: AlignmentStudyConfig, arm: str, seed: int, folder: Path, target: float | None) -> None:
    """Train or resume one run, and keep the adapters of all its marks.

    Args:
        target: the KL to match; None if the arm matches none.
    """
    config = study.align_config(arm, seed)
    generator, task = load_generator_of(config), load_task(config.task)
    judge = _judge(study, arm, config, generator, folder)
    probe = kl_probe(generator, task, study.num_steps)
    watcher = ArmWatcher(
        generator,
        folder,
        probe.measure,
        lambda: curve_point(generator, task, study.num_steps),
        study.kl_every,
        study.curve_every,
        study.budget_of(arm),
        target,
    )
    resume, title = (folder / "run.json").is_file(), f"{arm} seed {seed}"
    align_generator(config, generator, judge, folder, task=task, resume=resume, title=title, watcher=watcher)
    _keep_rest(study.marks(arm), watcher, folder)


def _keep_rest(marks: tuple[Mark, ...], watcher: ArmWatcher, folder: Path) -> None:
    """Marks that the run did not reach are its end; the generator holds the final weights."""
    last = RunFolder(folder).metrics()[-1]
    extra = {"work": {k.removeprefix("work/"): v for k, v in last.items() if k.startswith("work/")}}
    extra |= {"cpu_seconds": last.get("study/cpu_seconds", 0.0), "measuring": last.get("study/measuring", 0.0)}
    for mark in marks:
        if not (folder / "marks" / mark / "mark.json").is_file():
            watcher.keep(mark, last["step"], watcher.kl(), last["seconds"], extra, reached=mark == "end")


def curve_point(generator: Tunable, task: Task, num_steps: int) -> float:
    """The oracle's mean value on one fixed noise of every development prompt."""
    samples = fixed_samples(generator, task.development(), 1, num_steps, CURVE_SEED, title="development prompts")
    return float(measure(samples, task).mean())


def _judge(
    study: AlignmentStudyConfig, arm: str, config: AlignConfig, generator: Tunable, folder: Path
) -> RewardModel | None:
    """The judge that an arm learns from; the supervised control asks none."""
    if config.algorithm == "sft":
        return None
    judge = load_judge(config.judge, precision=config.precision, compile=config.compile)
    if not study.arms[arm].standardise:
        return judge
    file = folder / "standards.json"
    if not file.is_file():
        samples = fixed_samples(
            generator, load_task(config.task).development(), 2, study.num_steps, STANDARD_SEED, title="standard"
        )
        criterion = config.criterion or judge.criterion
        standard = standard_of(
            "judge", lambda asked: judge.judge(asked).margin, samples.prompts, samples.media, criterion
        )
        save_standards(file, {"judge": standard}, {"config": {"judge": config.judge}})
    return Standardised(judge, load_standards(file)[1]["judge"])
