"""Signs of reward hacking that need no gold standard: pure functions of rewards and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewarddance.core.types import Comparison, RewardModel

Array = NDArray[np.float64]
SURE = 0.95
STATISTICS = ("brightness", "contrast", "colourfulness", "sharpness")


def saturation(rewards: Array) -> float:
    """Share of P(yes) above `SURE` or below 1 - `SURE`: there a judge's answer hardly changes."""
    known = rewards[~np.isnan(rewards)]
    return float(np.mean((known > SURE) | (known < 1 - SURE))) if known.size else float("nan")


def rank_disagreement(first: Array, second: Array) -> float:
    """Share of pairs of samples of one prompt that two measures order differently, (prompts, samples) each.

    Pairs that either measure ties are left out; NaN where none is left (GARDO watches this).
    """
    i, j = np.triu_indices(first.shape[1], 1)
    signs = np.sign(first[:, i] - first[:, j]) * np.sign(second[:, i] - second[:, j])
    decided = signs[(signs != 0) & ~np.isnan(signs)]
    return float(np.mean(decided < 0)) if decided.size else float("nan")


def part_means(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean value of every part of a set of judges by name, from the values (N,); a part that answered nothing is left
    out.
    """
    means = {name: float(values.detach().nanmean()) for name, values in parts.items()}
    return {name: mean for name, mean in means.items() if not np.isnan(mean)}


def set_disagreement(parts: Mapping[str, Array]) -> tuple[float, float]:
    """How much the judges of a set disagree, from their standardised values (N,) by name.

    Pictures that exploit one judge's mistakes please that judge more than the others, so disagreement grows (Coste et
    al., arXiv 2310.02743).

    Returns:
        The mean over items of the standard deviation over judges, and the share of items on which two judges have
        different signs. Items with fewer than two answers are left out; NaN where none is left.
    """
    values = np.stack(list(parts.values()))
    values = values[:, (~np.isnan(values)).sum(0) > 1]
    if not values.size:
        return float("nan"), float("nan")
    split = (np.nanmax(values, 0) > 0) & (np.nanmin(values, 0) < 0)
    return float(np.nanstd(values, 0).mean()), float(split.mean())


def pixel_diversity(pictures: Tensor) -> float:
    """Mean root mean square difference between samples of one prompt, in [0, 1].

    Args:
        pictures: (prompts, samples, C, H, W) in [0, 1].
    """
    flat = pictures.flatten(2)
    i, j = np.triu_indices(flat.shape[1], 1)
    return float((flat[:, i] - flat[:, j]).square().mean(2).sqrt().mean())


def statistics(pictures: Tensor) -> Tensor:
    """`STATISTICS` of every picture, (N, 4), from (N, 3, H, W) in [0, 1].

    Brightness: mean. Contrast: standard deviation of the grey values. Colourfulness: mean difference of the largest and
    the smallest channel. Sharpness: mean absolute difference of neighbouring grey values.
    """
    grey = pictures.mean(1)
    down, across = grey[:, 1:] - grey[:, :-1], grey[..., 1:] - grey[..., :-1]
    sharpness = (down.abs().flatten(1).mean(1) + across.abs().flatten(1).mean(1)) / 2
    colour = (pictures.amax(1) - pictures.amin(1)).flatten(1).mean(1)
    return torch.stack([grey.flatten(1).mean(1), grey.flatten(1).std(1), colour, sharpness], 1)


def drift(now: Tensor, start: Tensor) -> dict[str, float]:
    """Change of the mean of every statistic, in standard deviations of the start; (N, 4) each, by name."""
    change = (now.mean(0) - start.mean(0)) / start.std(0).clamp(min=1e-6)
    return dict(zip(STATISTICS, change.tolist(), strict=True))


def surface_sensitivity(judge: RewardModel, comparisons: Sequence[Comparison], step: float = 0.01) -> float | None:
    """Mean of m(x) - m(x - step g / |g|): how much the margin falls by a small step against its gradient g.

    It falls when a judge is exploited, because the pictures are then near maxima of the margin. The comparisons are
    asked one at a time, so that no more than one gradient is in memory.

    Args:
        step: length of the step in pixel values over the whole picture (Euclidean).

    Returns:
        The mean over the comparisons that were answered, NaN where none was; None for a judge without gradients.
    """
    if not getattr(judge, "differentiable", True):
        return None
    falls = []
    for comparison in comparisons:
        x = comparison.candidate.frames.detach().clone().requires_grad_()
        with torch.enable_grad():
            verdict = judge.judge([_with(comparison, x)])
            if not bool(verdict.answered):
                continue
            if not verdict.margin.requires_grad:
                return None
            (g,) = torch.autograd.grad(verdict.margin.sum(), x, allow_unused=True)
        back = torch.zeros_like(x) if g is None else step * g / g.norm().clamp(min=1e-12)
        with torch.no_grad():
            after = judge.judge([_with(comparison, (x - back).detach())])
        if bool(after.answered):
            falls.append(float(verdict.margin.detach() - after.margin))
    return float(np.mean(falls)) if falls else math.nan


def _with(comparison: Comparison, frames: Tensor) -> Comparison:
    return replace(comparison, candidate=replace(comparison.candidate, frames=frames))
