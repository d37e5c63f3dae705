"""Measures a generator on fixed prompts and noises: gold standard, paired intervals, diversity, a judge's win rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewarddance.core.errors import ConfigError, JudgementError
from rewarddance.core.mapped import map_bytes
from rewarddance.core.media import Media, StoredMedia
from rewarddance.core.protocols import Generator
from rewarddance.core.statistics import Interval, bootstrap, paired_bootstrap
from rewarddance.core.task import Request, Task
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.generator.trace import draw
from rewarddance.reward.batches import in_batches

Array = NDArray[np.float64]
Features = Callable[[Sequence[Media]], torch.Tensor]
"""Pictures to features (N, D)."""
Measure = Callable[[Media], float]
"""A number of one picture or clip, from its pixels alone."""


@dataclass(frozen=True)
class Samples:
    """Pictures or clips of every prompt: `media[prompt][noise]`, kept as bytes, as in files."""

    prompts: tuple[Request, ...]
    media: tuple[Sequence[Media], ...]


def fixed_samples(
    generator: Generator,
    prompts: Sequence[Request],
    num_noises: int = 4,
    num_steps: int = 20,
    seed: int = 0,
    batch: int = 120,
    title: str = "samples",
    file: Path | None = None,
) -> Samples:
    """Draw `num_noises` samples a prompt; prompt i, noise j starts from the same latent for equal seeds.

    Args:
        file: the bytes of clips go to this file, so that they are not all in memory.
    """
    flat = [p for p in prompts for _ in range(num_noises)]
    noise = generator.noise(len(flat), torch.Generator().manual_seed(seed))
    pixels, fps = torch.empty(0, dtype=torch.uint8), None
    for place, media in enumerate(draw(generator, flat, noise, num_steps, batch=batch, title=title)):
        content = media.to_bytes() if media.num_frames > 1 else media.to_bytes()[0]
        if place == 0:
            shape, fps = (len(flat), *content.shape), media.fps
            on_disk = file is not None and media.num_frames > 1
            pixels = map_bytes(file, shape, new=True) if file and on_disk else torch.empty(shape, dtype=torch.uint8)
        pixels[place] = content
    rows = (StoredMedia(part, fps) for part in torch.split(pixels, num_noises))
    return Samples(tuple(prompts), tuple(rows))


def right_media(task: Task, prompts: Sequence[Request], num: int, seed: int, fps: float | None = None) -> StoredMedia:
    """`num` right pictures or clips of every prompt, drawn by the task itself; (P num) media, those of a prompt
    together.

    Args:
        fps: frames per second of clips, None for pictures.

    Raises:
        ConfigError: the task cannot draw any.
    """
    pixels = task.reference_pictures(prompts, num, seed)
    return StoredMedia((pixels * 255).round().to(torch.uint8), fps)


def of_each(samples: Samples, number: Measure) -> Array:
    """A number of every sample, (prompts, noises)."""
    return np.array([[number(m) for m in row] for row in samples.media], np.float64)


def measure(samples: Samples, task: Task) -> Array:
    """The task's gold standard of every sample, (prompts, noises).

    Raises:
        ConfigError: the task has none.
    """
    if task.gold is None:
        raise ConfigError(f"task {task.name}: has no gold standard")
    return np.array(
        [task.gold([p] * len(row), row, row) for p, row in zip(samples.prompts, samples.media, strict=True)]
    )


def compare(after: Array, before: Array, categories: Sequence[str]) -> dict[str, Any]:
    """Gain with its interval, overall and by category; prompts are the independent units."""
    names = np.array(categories)
    by_category = {c: paired_bootstrap(after[names == c], before[names == c]) for c in dict.fromkeys(categories)}
    total = paired_bootstrap(after, before)
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "gain": total.as_dict() | {"verdict": total.verdict},
        "categories": {
            c: {"before": float(before[names == c].mean()), "after": float(after[names == c].mean()), **i.as_dict()}
            for c, i in by_category.items()
        },
    }


def levels(values: Array, categories: Sequence[str]) -> dict[str, Interval]:
    """Mean and interval overall and by category."""
    names = np.array(categories)
    return {"all": bootstrap(values)} | {c: bootstrap(values[names == c]) for c in dict.fromkeys(categories)}


@torch.no_grad()
def diversity(samples: Samples, features: Features) -> dict[str, float]:
    """Mean distance between samples of one prompt.

    Returns:
        feature: mean pairwise Euclidean distance of features; pixel: mean pairwise root mean square difference of
        pixels in [0, 1].
    """
    return diversity_of_features(samples, [features(row) for row in samples.media])


def diversity_of_features(samples: Samples, features: Sequence[Tensor]) -> dict[str, float]:
    """`diversity` from the features of each prompt's samples, (noises, D)."""
    by_feature, by_pixel = [], []
    for row, own in zip(samples.media, features, strict=True):
        f = own.float()
        x = torch.stack([m.frames for m in row]).flatten(1).float()
        upper = torch.triu_indices(len(row), len(row), 1)
        by_feature.append(torch.cdist(f, f)[upper[0], upper[1]].mean().item())
        by_pixel.append((torch.cdist(x, x)[upper[0], upper[1]] / x.shape[1] ** 0.5).mean().item())
    return {"feature": float(np.mean(by_feature)), "pixel": float(np.mean(by_pixel))}


@torch.no_grad()
def proxy_reward(judge: RewardModel, after: Samples, before: Samples, criterion: str) -> Array:
    """The judge's P(after is better than before) (`Verdict.win_rate`), same prompt and noise, (prompts, noises), NaN
    where it refuses.

    For every second noise the picture before is the candidate, so that a bias to one position cancels.
    """
    comparisons: list[Comparison] = []
    for p, a, b in zip(after.prompts, after.media, before.media, strict=True):
        pairs = [Comparison.of(p, x, y, criterion) for x, y in zip(a, b, strict=True)]
        comparisons += [c.swapped() if k % 2 else c for k, c in enumerate(pairs)]
    rates = in_batches(lambda batch: judge.judge(batch).win_rate, comparisons, "after against before, by the judge")
    rewards = rates.numpy().reshape(len(after.prompts), -1)
    rewards[:, 1::2] = 1 - rewards[:, 1::2]
    return rewards


def answered_prompts(rewards: Array) -> NDArray[np.bool_]:
    """Which prompts (rows) have no NaN.

    Raises:
        JudgementError: none has.
    """
    answered: NDArray[np.bool_] = np.asarray(np.isfinite(rewards).all(1))
    if not answered.any():
        raise JudgementError(f"the judge refused comparisons of all {len(rewards)} prompts")
    return answered


def compare_judges(own: Array, other: Array) -> dict[str, Any]:
    """The training judge's P(after is better) beside another judge's, (prompts, noises) each.

    Returns:
        training_judge: the win rate by the judge that trained; overrated: how many more wins (P > 0.5) it sees than the
        other one (paired, with an interval); hacking: `none`, `suspected` (it sees a gain and the other one does not)
        or `hacking` (the other one sees a loss). A gain or loss is an interval that does not contain one half.
    """
    trained, second = bootstrap(own), bootstrap(other)
    verdict = "none"
    if trained.ci_low > 0.5:
        verdict = "hacking" if second.ci_high < 0.5 else "suspected" if second.mean <= 0.5 else "none"
    return {
        "training_judge": trained.as_dict(),
        "overrated": paired_bootstrap(_wins(own), _wins(other)).as_dict(),
        "hacking": verdict,
    }


def _wins(rewards: Array) -> Array:
    """1 for P > 0.5, 0 for P < 0.5, 0.5 for exactly 0.5: judges differ in how sure they are, but not in signs."""
    return (np.sign(rewards - 0.5) + 1) / 2
