"""The trace port: a rollout as an iterator over its steps. Sampling, previews, training and searches consume it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewarddance.core.media import Media
from rewarddance.core.progress import progress
from rewarddance.core.protocols import Generator
from rewarddance.core.task import Request
from rewarddance.generator import flow
from rewarddance.generator.flow import Gaussian


@dataclass
class Step:
    """One step of B samples.

    Attributes:
        index: place in the rollout, 0 is the first step.
        z: state before the step, (B, ...); v: the model's velocity there; now, after: times before and after the step.
        policy: distribution of the next state.
        next: the next state, drawn from `policy`. The consumer may replace it; the rollout goes on from there.
    """

    index: int
    z: Tensor
    v: Tensor
    now: float
    after: float
    policy: Gaussian
    next: Tensor

    @property
    def clean(self) -> Tensor:
        """The clean latent that this step predicts, x0 = z - t v."""
        return flow.clean(self.z, self.v, self.now)


def trace(
    generator: Generator,
    condition: Any,
    z: Tensor,
    times: Tensor,
    *,
    noise: float | Sequence[float] = 0.0,
    rng: torch.Generator | Sequence[torch.Generator] | None = None,
    start: int = 0,
) -> Iterator[Step]:
    """Step from `z` along `times`. Runs one velocity evaluation a step, in the caller's gradient mode.

    Args:
        z: the state at `times[start]`, (B, ...).
        times: (S + 1,), from 1 to 0 (`generator.times`).
        noise: level of Flow-GRPO's SDE (`flow.step`), one for every step or S of them; 0 is the ODE. One level leaves
            the last step without noise, since its density would be that of the picture itself.
        rng: source of the noise, needed where `noise` is above 0: one for all rows, or G of them for G groups of B / G
            rows, so that the noise of a group does not depend on the others.
        start: index of the first step.

    Raises:
        ValueError: the number of noise levels is not S.
    """
    ts: list[float] = times.tolist()
    num_steps = len(ts) - 1
    levels = list(noise) if isinstance(noise, Sequence) else [float(noise)] * (num_steps - 1) + [0.0] * (num_steps > 0)
    if len(levels) != num_steps:
        raise ValueError(f"{len(levels)} noise levels for {num_steps} steps")
    for index in range(start, num_steps):
        now, after = ts[index], ts[index + 1]
        v = generator.velocity(z, now, condition)
        policy = flow.step(z, v, now, after, levels[index])
        sampled = policy.mean
        if levels[index]:
            sampled = policy.sample(_normal(policy.mean, rng))
        step = Step(index, z, v, now, after, policy, sampled)
        yield step
        z = step.next


def _normal(like: Tensor, rng: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Standard normal noise of a tensor's shape (B, ...), type and device."""
    sources = rng if isinstance(rng, Sequence) else [rng]
    shape = (len(like) // len(sources), *like.shape[1:])
    parts = [torch.randn(shape, generator=r, device=None if r is None else r.device) for r in sources]
    return torch.cat(parts).to(like)


@torch.no_grad()
def sample_latents(generator: Generator, condition: Any, z: Tensor, num_steps: int) -> Tensor:
    """Euler's method on the flow, from noise `z` to a clean latent. NFE = num_steps."""
    for step in trace(generator, condition, z, generator.times(num_steps)):
        z = step.next
    return z


@torch.no_grad()
def draw(
    generator: Generator,
    prompts: Sequence[Request],
    noise: Tensor,
    num_steps: int,
    *,
    batch: int = 128,
    preview: int | None = None,
    title: str = "samples",
) -> Iterator[Media]:
    """One picture for every prompt and its noise, in order; `batch` pictures are sampled and decoded at once.

    Args:
        noise: (N, ...), one latent for each of the N prompts (`generator.noise`).
        preview: also yield, after every picture, the picture that step `preview` predicted on the way.
        title: of the progress bar.
    """
    with progress(title) as report:
        for start in range(0, len(prompts), batch):
            rows = slice(start, start + batch)
            z, predicted = noise[rows], None
            for step in trace(generator, generator.condition(prompts[rows]), z, generator.times(num_steps)):
                z = step.next
                predicted = step.clean if step.index == preview else predicted
            pictures = generator.decode(z)
            if predicted is None:
                yield from pictures
            else:
                for pair in zip(pictures, generator.decode(predicted), strict=True):
                    yield from pair
            report(min(start + batch, len(prompts)), len(prompts))


@dataclass(frozen=True)
class Trajectory:
    """A recorded rollout of B samples over S steps.

    Attributes:
        states: (S + 1, B, ...); states[0] is noise and states[-1] the clean latent.
        times: (S + 1,), from 1 to 0.
        log_probs: (steps with noise, B); None for a deterministic rollout.
    """

    states: Tensor
    times: Tensor
    log_probs: Tensor | None


@torch.no_grad()
def rollout(
    generator: Generator,
    condition: Any,
    z: Tensor,
    num_steps: int,
    noise: float | Sequence[float] = 0.0,
    rng: torch.Generator | None = None,
) -> Trajectory:
    """Sample and record every state, with log-probabilities of the steps that have noise."""
    times, states, log_probs = generator.times(num_steps), [z], []
    for step in trace(generator, condition, z, times, noise=noise, rng=rng):
        states.append(step.next)
        if bool((step.policy.std > 0).all()):
            log_probs.append(step.policy.log_prob(step.next))
    return Trajectory(torch.stack(states), times, torch.stack(log_probs) if log_probs else None)
