"""The work of an alignment run, counted: forward passes of the generator and comparisons that the judge was asked.

Only training is counted: rollouts, references, gradient steps and the frozen policy's passes. Probes are measurements
and are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from rewarddance.align.work_config import WORK
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.parallel import all_reduce_sum
from rewarddance.core.protocols import Tunable
from rewarddance.core.types import Comparison, RewardModel, Verdict


@dataclass
class Work:
    """Counts of this process since the last `total`, by the names of `WORK`."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WORK, 0))

    def add(self, model: str, num: int, has_gradient: bool) -> None:
        """Count `num` passes of `generator` or calls of `judge`, and whether they carry a gradient."""
        name = "generator_passes" if model == "generator" else "judge_calls"
        self.counts[name] += num
        if has_gradient:
            self.counts[f"{name}_with_gradient"] += num

    def total(self, extra: dict[str, Any]) -> Metrics:
        """Move the counts into `extra["work"]`, which checkpoints keep; a collective.

        Returns:
            `work/NAME`: sums over all processes since the first step of the run.
        """
        here = all_reduce_sum(torch.tensor(list(self.counts.values())))
        before: dict[str, int] = extra.get("work", {})
        extra["work"] = {name: before.get(name, 0) + int(num) for name, num in zip(self.counts, here, strict=True)}
        self.counts = dict.fromkeys(self.counts, 0)
        return {f"work/{name}": num for name, num in extra["work"].items()}


class CountedGenerator:
    """A generator whose velocities are counted; everything else is the inner generator's.

    One velocity of N rows counts N passes, and 2 N where guidance needs a pass of its own. The encoders of prompts and
    the autoencoder are not counted, nor are activations that are computed again for the backward pass.
    """

    def __init__(self, inner: Tunable, work: Work) -> None:
        self.inner, self.work = inner, work

    @property
    def guidance(self) -> float:
        return self.inner.guidance

    @guidance.setter
    def guidance(self, scale: float) -> None:
        self.inner.guidance = scale

    def velocity(self, z: Tensor, t: float | Tensor, condition: Any) -> Tensor:
        v = self.inner.velocity(z, t, condition)
        self.work.add("generator", len(z) * self.inner.passes, v.requires_grad)
        return v

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class CountedJudge:
    """A judge whose comparisons are counted; everything else is the inner judge's.

    A comparison counts once, even if the judge asks it in both orders.
    """

    def __init__(self, inner: RewardModel, work: Work) -> None:
        self.inner, self.work = inner, work

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        verdict = self.inner.judge(comparisons)
        self.work.add("judge", len(comparisons), verdict.logp_yes.requires_grad)
        return verdict

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def counted(generator: Tunable, work: Work) -> Tunable:
    """The generator with its passes counted into `work`."""
    return cast(Tunable, CountedGenerator(generator, work))


class Watcher(Protocol):
    """Looks at a run after every step; a study's way to measure a run and to end it."""

    def after_step(self, loop: Loop, metrics: Metrics) -> str | None:
        """Called after every step and its probes, before the line is logged and a checkpoint is written.

        Args:
            loop: its `step` is the number of finished steps. State that a resumed run needs belongs into `extra`.
            metrics: of the step, with `work/NAME`; the watcher may add its own.

        Returns:
            The reason to end the run after this step; None to continue.
        """
        ...
