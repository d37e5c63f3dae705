"""Reward feedback learning (ImageReward, arXiv 2304.05977, section 3) on rectified flow, with comparison rewards.

1. Denoise without gradient to a random late step.
2. Take one step (or a few) with gradient, predict the clean latent, and decode it.
3. Judge the picture against a reference.
4. Backpropagate the reward through the judge, the decoder and the step into the generator's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.align.config import ReflConfig
from rewarddance.align.diagnostics import part_means
from rewarddance.core.media import Media
from rewarddance.core.protocols import Generator
from rewarddance.core.task import Request
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.generator import flow
from rewarddance.generator.trace import trace

VIEW_SHIFT = 24
"""A view is shifted by at most 1 / `VIEW_SHIFT` of the height and of the width."""
REWARD_METRICS = ("reward", "reward_std", "margin", "win_rate")
"""Metrics of `refl_step` that are taken over the answered pictures only."""
METRICS = ("loss", *REWARD_METRICS, "kl", "time")


def gradient_index(config: ReflConfig, rng: torch.Generator) -> int:
    """Index of the first step with gradient, drawn uniformly from the window."""
    low = min(config.num_steps - 1, round(config.window[0] * config.num_steps))
    high = max(low + 1, round(config.window[1] * config.num_steps))
    return int(torch.randint(low, high, (), generator=rng))


@torch.no_grad()
def approach(generator: Generator, condition: Any, z: Tensor, index: int, num_steps: int) -> Tensor:
    """The state at the start of step `index`, by denoising from noise `z` without added noise."""
    for step in trace(generator, condition, z, generator.times(num_steps)[: index + 1]):
        z = step.next
    return z


def reward_loss(margin: Tensor, kind: str) -> Tensor:
    """Loss of every margin, (N,): -log P(yes), minus the log-odds, or -P(yes)."""
    if kind == "log_sigmoid":
        return -F.logsigmoid(margin)
    return -margin if kind == "margin" else -torch.sigmoid(margin)


def view_shifts(pictures: Sequence[Media], views: int, rng: torch.Generator) -> list[tuple[int, int]]:
    """The shift of every view in pixels, as (down, right). The first view is not shifted.

    With one view, no random numbers are drawn from `rng`.
    """
    if views == 1:
        return [(0, 0)]
    largest = torch.tensor([max(1, side // VIEW_SHIFT) for side in pictures[0].size])
    random_shifts = (torch.rand(views - 1, 2, generator=rng) * (2 * largest + 1)).floor().long() - largest
    return [(0, 0), *((int(down), int(right)) for down, right in random_shifts)]


def shifted(media: Media, down: int, right: int) -> Media:
    """The picture moved by whole pixels. Its edge pixels are repeated. Gradients reach the picture."""
    if down == right == 0:
        return media
    h, w = media.size
    rows = (torch.arange(h) - down).clamp(0, h - 1)
    columns = (torch.arange(w) - right).clamp(0, w - 1)
    return replace(media, frames=media.frames[:, :, rows][..., columns])


def gradient_steps(
    generator: Generator, condition: Any, z: Tensor, index: int, config: ReflConfig
) -> tuple[Tensor, Tensor]:
    """Take `config.gradient_steps` steps with gradient from state `z` at step `index`, and predict the clean latents.

    Returns:
        The clean latents (B, ...) with gradient, and the mean KL of these steps to the frozen policy.
    """
    stop = min(index + config.gradient_steps, config.num_steps)
    divergences, clean = [], z
    for step in trace(generator, condition, z, generator.times(config.num_steps)[: stop + 1], start=index):
        state = step.z.detach()  # so the gradient of the KL does not flow into the steps before this one
        v = generator.velocity(state, step.now, condition) if step.z.requires_grad else step.v
        with torch.no_grad(), generator.reference():
            v_frozen = generator.velocity(state, step.now, condition)
        policy, frozen = (
            flow.step(state, velocity, step.now, step.after, config.kl_noise) for velocity in (v, v_frozen)
        )
        divergences.append(policy.kl(frozen).mean())
        clean = step.clean
    return clean, torch.stack(divergences).mean()


def refl_step(
    generator: Generator,
    judge: RewardModel,
    prompts: Sequence[Request],
    references: Sequence[Media | None],
    config: ReflConfig,
    criterion: str,
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """Loss and metrics of one step. The caller calls `backward` on `loss`.

    Every picture is judged in `config.views` views, and its margin is the mean over the views. If the judge refuses one
    of the views, the picture has no reward and no gradient of a reward.

    Returns:
        loss: mean reward loss of all pictures (0 for refused ones) + kl_weight * kl.
        reward, margin, win_rate: means over the answered pictures of P(yes), of the log-odds, and of P(better than the
        reference) (`Verdict.win_rate`). reward_std: standard deviation of P(yes). These are NaN if no picture was
        answered.
        kl: mean KL of the steps with gradient to the frozen policy, a dimension. time: where the gradient begins.
        num_judged: number of pictures, with their `copies`. num_answered: how many of them the judge answered.
        part/NAME: with a set of judges, the mean value of every judge that answered.
    """
    condition = generator.condition(prompts)
    index = gradient_index(config, rng)
    z = approach(generator, condition, generator.noise(len(prompts), rng), index, config.num_steps)
    clean, kl = gradient_steps(generator, condition, z, index, config)
    latents, divergences = [clean], [kl]
    for _ in range(config.copies):
        z = flow.add_noise(clean.detach(), generator.noise(len(prompts), rng), generator.times(config.num_steps)[index])
        latent, kl = gradient_steps(generator, condition, z, index, config)
        latents.append(latent)
        divergences.append(kl)
    kl = torch.stack(divergences).mean()
    pictures = [picture for latent in latents for picture in generator.decode(latent)]
    prompts_and_references = [pair for _ in latents for pair in zip(prompts, references, strict=True)]
    comparisons = [
        Comparison.of(prompt, shifted(picture, *shift), reference, criterion)
        for shift in view_shifts(pictures, config.views, rng)
        for picture, (prompt, reference) in zip(pictures, prompts_and_references, strict=True)
    ]
    verdict = judge.judge(comparisons)
    answered = verdict.answered.reshape(config.views, -1).all(0)
    margin, balanced_margin = (
        m.reshape(config.views, -1).mean(0)[answered] for m in (verdict.margin, verdict.balanced_margin.detach())
    )
    loss = reward_loss(margin, config.loss).sum() / len(pictures) + config.kl_weight * kl
    reward = torch.sigmoid(margin.detach())
    return {
        "loss": loss,
        "reward": reward.mean(),
        "reward_std": (reward - reward.mean()).square().mean().sqrt(),
        "margin": margin.detach().mean(),
        "win_rate": torch.sigmoid(balanced_margin).mean(),
        "kl": kl.detach(),
        "time": generator.times(config.num_steps)[index],
        "num_judged": torch.tensor(len(pictures)),
        "num_answered": answered.sum(),
        **{f"part/{name}": torch.tensor(mean) for name, mean in part_means(verdict.parts).items()},
    }
