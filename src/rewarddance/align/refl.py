"""Reward feedback learning (ImageReward, arXiv 2304.05977, section 3) on rectified flow, with comparison rewards.

Denoise without gradient to a random late step, take one step with gradient, predict the clean picture, decode,
judge it against a reference, and send the reward's gradient through decoder and step into the generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.align.config import ReflConfig
from rewarddance.core.media import Media
from rewarddance.core.protocols import Generator
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.generator import flow


@dataclass(frozen=True)
class LatePoint:
    """Where the gradient step starts: state z (B, ...), its time and the next one."""

    z: Tensor
    now: float
    after: float


def gradient_index(config: ReflConfig, rng: torch.Generator) -> int:
    """The step that carries the gradient, uniform over the window."""
    low = min(config.num_steps - 1, round(config.window[0] * config.num_steps))
    high = max(low + 1, round(config.window[1] * config.num_steps))
    return int(torch.randint(low, high, (), generator=rng))


@torch.no_grad()
def approach(generator: Generator, condition: Any, z: Tensor, index: int, num_steps: int) -> LatePoint:
    """Denoise deterministically from noise `z` to the start of step `index`."""
    ts = generator.times(num_steps).tolist()
    for now, after in zip(ts[:index], ts[1 : index + 1], strict=True):
        z = flow.step(z, generator.velocity(z, now, condition), now, after).mean
    return LatePoint(z, ts[index], ts[index + 1])


def reward_loss(margin: Tensor, kind: str) -> Tensor:
    """Mean loss of margins (B,): -log P(yes), -log-odds or -P(yes)."""
    if kind == "log_sigmoid":
        return -F.logsigmoid(margin).mean()
    return -margin.mean() if kind == "margin" else -torch.sigmoid(margin).mean()


VIEW_SHIFT = 24
"""A view is shifted by up to one `VIEW_SHIFT`-th of the picture's sides."""


def view_shifts(pictures: Sequence[Media], views: int, rng: torch.Generator) -> list[tuple[int, int]]:
    """(down, right) in pixels of every view; the first is not shifted. Draws nothing from `rng` for one view."""
    reach = torch.tensor([max(1, side // VIEW_SHIFT) for side in pictures[0].size])
    if views == 1:
        return [(0, 0)]
    drawn = (torch.rand(views - 1, 2, generator=rng) * (2 * reach + 1)).floor().long() - reach
    return [(0, 0), *((int(d), int(r)) for d, r in drawn)]


def shifted(media: Media, down: int, right: int) -> Media:
    """The picture moved by whole pixels, its edge repeated; gradients flow."""
    if down == right == 0:
        return media
    h, w = media.size
    rows = (torch.arange(h) - down).clamp(0, h - 1)
    columns = (torch.arange(w) - right).clamp(0, w - 1)
    return replace(media, frames=media.frames[:, :, rows][..., columns])


@dataclass(frozen=True)
class Flight:
    """What the gradient steps made: clean pictures' latents (B, ...) with gradient, and the mean KL of the steps."""

    clean: Tensor
    kl: Tensor


def fly(generator: Generator, condition: Any, z: Tensor, index: int, config: ReflConfig) -> Flight:
    """Take `gradient_steps` steps with gradient from state `z` at step `index`, then jump to the clean picture."""
    ts = generator.times(config.num_steps).tolist()
    stop = min(index + config.gradient_steps, config.num_steps)
    divergences = []
    for now, after in zip(ts[index:stop], ts[index + 1 : stop + 1], strict=True):
        v = generator.velocity(z, now, condition)
        with torch.no_grad(), generator.reference():
            v_frozen = generator.velocity(z.detach(), now, condition)
        here = generator.velocity(z.detach(), now, condition) if z.requires_grad else v  # states count as constant
        policy, frozen = (flow.step(z.detach(), u, now, after, config.kl_noise) for u in (here, v_frozen))
        divergences.append(policy.kl(frozen).mean())
        x = flow.clean(z, v, now)
        z = flow.step(z, v, now, after).mean
    return Flight(x, torch.stack(divergences).mean())


FIGURES = ("loss", "reward", "reward_std", "margin", "kl", "time")
"""What `refl_step` finds."""


def refl_step(
    generator: Generator,
    judge: RewardModel,
    prompts: Sequence[str],
    references: Sequence[Media | None],
    config: ReflConfig,
    criterion: str,
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """Loss and figures of one step; the caller calls `backward` on `loss`.

    Returns:
        loss = reward loss + kl_weight * kl; reward: mean P(yes); reward_std: its spread over the batch; margin;
        kl: mean KL of the gradient steps to the frozen policy, per dimension; time: where the gradient begins.
    """
    condition = generator.condition(prompts)
    index = gradient_index(config, rng)
    point = approach(generator, condition, generator.noise(len(prompts), rng), index, config.num_steps)
    flight = fly(generator, condition, point.z, index, config)
    pictures = generator.decode(flight.clean)
    asked = [
        Comparison(p, shifted(x, *shift), r, criterion)
        for shift in view_shifts(pictures, config.views, rng)
        for p, x, r in zip(prompts, pictures, references, strict=True)
    ]
    margin = judge.judge(asked).margin.reshape(config.views, -1).mean(0)
    loss = reward_loss(margin, config.loss) + config.kl_weight * flight.kl
    reward = torch.sigmoid(margin.detach())
    return {
        "loss": loss,
        "reward": reward.mean(),
        "reward_std": reward.std(correction=0),
        "margin": margin.detach().mean(),
        "kl": flight.kl.detach(),
        "time": torch.tensor(point.now),
    }
