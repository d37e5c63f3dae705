"""One KL for all algorithms: how far a policy has moved from the frozen one, at fixed states of fixed prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewarddance.core.protocols import Generator
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Request
from rewarddance.generator import flow
from rewarddance.generator.trace import trace

NOISE = 0.7
"""Level of the SDE whose steps are compared (Flow-GRPO's default)."""
NUM_PROMPTS, NUM_TIMES = 16, 4


@dataclass(frozen=True)
class State:
    """States of some prompts before one step, with the frozen policy's velocity there, (N, ...) each.

    Attributes:
        condition: the embedded prompts.
    """

    condition: Any
    z: Tensor
    v_frozen: Tensor
    now: float
    after: float


@dataclass
class KlProbe:
    """KL(policy, frozen policy) of one SDE step, averaged over states that the frozen policy visits.

    The states are those of its deterministic rollouts from fixed noises, at `NUM_TIMES` steps spread over the
    rollout. They are a function of the frozen weights and the seed, so a resumed run makes them again.

    Args:
        prompts: the first `NUM_PROMPTS` are used.
        num_steps: steps of the rollout.
        batch: prompts in one pass.
    """

    generator: Generator
    prompts: Sequence[Request]
    num_steps: int
    seed: int
    batch: int = 128
    states: list[State] = field(default_factory=list)

    @torch.no_grad()
    def measure(self) -> float:
        """Nats a dimension, in the unit of `refl.kl_weight`; 0 for the frozen policy itself."""
        if not self.states:
            self._visit()
        total, num = 0.0, 0
        for s in self.states:
            v = self.generator.velocity(s.z, s.now, s.condition)
            policy, frozen = (flow.step(s.z, u, s.now, s.after, NOISE) for u in (v, s.v_frozen))
            total, num = total + float(policy.kl(frozen).sum()), num + len(s.z)
        return total / num

    def _visit(self) -> None:
        prompts = list(self.prompts[:NUM_PROMPTS])
        rng = torch.Generator().manual_seed(seed_of(self.seed, "kl-probe"))
        noise, times = self.generator.noise(len(prompts), rng), self.generator.times(self.num_steps)
        # the last step of a rollout has no noise, so it has no KL
        chosen = set(torch.linspace(0, max(0, self.num_steps - 2), NUM_TIMES).round().int().tolist())
        with self.generator.reference():
            for start in range(0, len(prompts), self.batch):
                rows = slice(start, start + self.batch)
                condition = self.generator.condition(prompts[rows])
                for step in trace(self.generator, condition, noise[rows], times):
                    if step.index in chosen:
                        self.states.append(State(condition, step.z, step.v, step.now, step.after))
