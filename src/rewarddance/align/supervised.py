"""The supervised control: flow matching on the task's captioned pictures, as in pretraining. No judge, no probes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.align.config import AlignConfig
from rewarddance.align.guidance import without_guidance
from rewarddance.align.run import AlignRun
from rewarddance.core.averages import WeightedMeans
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.parallel import all_reduce_gradients, rank, world_size
from rewarddance.core.protocols import Tunable
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Task
from rewarddance.generator import flow


@dataclass
class SupervisedRun(AlignRun):
    """Squared error of the velocity at logit-normal times (Esser et al. 2024), always without guidance."""

    config: AlignConfig
    generator: Tunable
    loop: Loop
    task: Task

    def step(self, index: int) -> Metrics:
        size = len(range(rank(), self.config.batch_size, world_size()))
        place = index * world_size() + rank()
        loss = supervised_loss(self.generator, self.task, self.config.seed, place, size)
        (loss * (size / self.config.batch_size)).backward()  # type: ignore[no-untyped-call]
        all_reduce_gradients(self.loop.parameters.values())
        means = WeightedMeans()
        means.add({"loss": loss.item()}, size)
        return dict(means.all_reduce(("loss",)))


def supervised_loss(generator: Tunable, task: Task, seed: int, place: int, size: int) -> Tensor:
    """Flow-matching loss of `size` captioned pictures: squared error of the velocity at logit-normal times.

    Args:
        place: which batch; a step of a run has one for each process.
    """
    prompts, pixels = task.supervised_batch(seed, "sft-control", place, size)
    rng = torch.Generator().manual_seed(seed_of(seed, "sft-noise", place))
    with torch.no_grad():
        x = generator.encode(pixels.to(generator.device))
    t = torch.sigmoid(torch.randn(len(x), generator=rng)).to(x.device)
    noise = torch.randn(x.shape, generator=rng).to(x.device)
    with without_guidance(generator):
        v = generator.velocity(flow.add_noise(x, noise, t), t, generator.condition(prompts))
    return F.mse_loss(v, noise - x)
