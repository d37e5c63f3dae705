"""Reward feedback learning (ImageReward, arXiv 2304.05977, section 3) on rectified flow, with comparison rewards.

Denoise without gradient to a random late step, take one step with gradient, predict the clean picture, decode it, judge
it against a reference, and backpropagate the reward through decoder and step into the generator.
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
"""A view is shifted by at most one `VIEW_SHIFT`-th of the picture's sides."""
REWARD_METRICS = ("reward", "reward_std", "margin", "win_rate")
"""Metrics of `refl_step` that are means over the answered comparisons."""
METRICS = ("loss", *REWARD_METRICS, "kl", "time")


def gradient_index(config: ReflConfig, rng: torch.Generator) -> int:
    """The step that carries the gradient, uniform over the window."""
    low = min(config.num_steps - 1, round(config.window[0] * config.num_steps))
    high = max(low + 1, round(config.window[1] * config.num_steps))
    return int(torch.randint(low, high, (), generator=rng))


@torch.no_grad()
def approach(generator: Generator, condition: Any, z: Tensor, index: int, num_steps: int) -> Tensor:
    """Denoise deterministically from noise `z` to the start of step `index`."""
    for step in trace(generator, condition, z, generator.times(num_steps)[: index + 1]):
        z = step.next
    return z


def reward_loss(margin: Tensor, kind: str) -> Tensor:
    """Loss of every margin, (N,): -log P(yes), -log-odds or -P(yes)."""
    if kind == "log_sigmoid":
        return -F.logsigmoid(margin)
    return -margin if kind == "margin" else -torch.sigmoid(margin)


def view_shifts(pictures: Sequence[Media], views: int, rng: torch.Generator) -> list[tuple[int, int]]:
    """(down, right) in pixels of every view; the first view is not shifted. One view draws nothing from `rng`."""
    reach = torch.tensor([max(1, side // VIEW_SHIFT) for side in pictures[0].size])
    if views == 1:
        return [(0, 0)]
    drawn = (torch.rand(views - 1, 2, generator=rng) * (2 * reach + 1)).floor().long() - reach
    return [(0, 0), *((int(down), int(right)) for down, right in drawn)]


def shifted(media: Media, down: int, right: int) -> Media:
    """The picture moved by whole pixels, with its edge repeated. Gradients flow."""
    if down == right == 0:
        return media
    h, w = media.size
    rows = (torch.arange(h) - down).clamp(0, h - 1)
    columns = (torch.arange(w) - right).clamp(0, w - 1)
    return replace(media, frames=media.frames[:, :, rows][..., columns])


def gradient_steps(
    generator: Generator, condition: Any, z: Tensor, index: int, config: ReflConfig
) -> tuple[Tensor, Tensor]:
    """Take `gradient_steps` steps with gradient from state `z` at step `index`, then jump to the clean latent.

    Returns:
        The clean latents (B, ...) with gradient, and the mean KL of these steps to the frozen policy.
    """
    stop = min(index + config.gradient_steps, config.num_steps)
    divergences, clean = [], z
    for step in trace(generator, condition, z, generator.times(config.num_steps)[: stop + 1], start=index):
        state = step.z.detach()  # the KL's gradient reaches the weights through this step only
        v = generator.velocity(state, step.now, condition) if step.z.requires_grad else step.v
        with torch.no_grad(), generator.reference():
            v_frozen = generator.velocity(state, step.now, condition)
        policy, frozen = (flow.step(state, u, step.now, step.after, config.kl_noise) for u in (v, v_frozen))
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
    """Loss and metrics of one step; the caller calls `backward` on `loss`.

    Pictures that the judge refuses have no reward and no reward gradient.

    Returns:
        loss = mean reward loss + kl_weight * kl; reward: mean P(yes); reward_std: its standard deviation over the
        batch; margin: mean log-odds; win_rate: mean P(better than the reference) (`Verdict.win_rate`); kl: mean KL of
        the gradient steps to the frozen policy, a dimension; time: where the gradient begins; num_judged: pictures with
        their copies (`copies`); num_answered: how many of them the judge answered; reward, reward_std, margin and
        win_rate are means over these (NaN without any). With a set of judges also part/NAME: the mean value of every
        judge that answered.
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
    pictures = [x for latent in latents for x in generator.decode(latent)]
    requests_and_references = [(p, r) for _ in latents for p, r in zip(prompts, references, strict=True)]
    comparisons = [
        Comparison.of(p, shifted(x, *shift), r, criterion)
        for shift in view_shifts(pictures, config.views, rng)
        for x, (p, r) in zip(pictures, requests_and_references, strict=True)
    ]
    verdict = judge.judge(comparisons)
    answered = verdict.answered.reshape(config.views, -1).all(0)
    margin, balanced = (
        m.reshape(config.views, -1).mean(0)[answered] for m in (verdict.margin, verdict.balanced_margin.detach())
    )
    loss = reward_loss(margin, config.loss).sum() / len(pictures) + config.kl_weight * kl
    reward = torch.sigmoid(margin.detach())
    return {
        "loss": loss,
        "reward": reward.mean(),
        "reward_std": (reward - reward.mean()).square().mean().sqrt(),
        "margin": margin.detach().mean(),
        "win_rate": torch.sigmoid(balanced).mean(),
        "kl": kl.detach(),
        "time": generator.times(config.num_steps)[index],
        "num_judged": torch.tensor(len(pictures)),
        "num_answered": answered.sum(),
        **{f"part/{name}": torch.tensor(mean) for name, mean in part_means(verdict.parts).items()},
    }
