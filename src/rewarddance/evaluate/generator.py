"""How good a generator is: fixed prompts, fixed noises, an exact measure, paired intervals, diversity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rewarddance.core.device import autocast
from rewarddance.core.media import Media, Packed
from rewarddance.core.protocols import Generator
from rewarddance.core.statistics import Interval, bootstrap, paired_bootstrap
from rewarddance.generator.rollout import sample

Measure = Callable[[str, Media], float]


@dataclass(frozen=True)
class Samples:
    """Pictures of every prompt under the same noises: `media[prompt][noise]`, kept as bytes, as files would be."""

    prompts: tuple[str, ...]
    media: tuple[Sequence[Media], ...]


@torch.no_grad()
def fixed_samples(
    generator: Generator,
    prompts: Sequence[str],
    num_noises: int = 4,
    num_steps: int = 20,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
    batch: int = 120,
    precision: Literal["fp32", "bf16"] = "bf16",
) -> Samples:
    """Draw `num_noises` samples a prompt; prompt i, noise j always starts from the same latent for equal seeds.

    Args:
        precision: as a run was trained with; bf16 where the hardware has it.
    """
    flat = [p for p in prompts for _ in range(num_noises)]
    rng = torch.Generator().manual_seed(seed)
    noise = generator.noise(len(flat), rng)
    pictures: list[torch.Tensor] = []
    with autocast(noise.device, precision):
        for start in range(0, len(flat), batch):
            part = flat[start : start + batch]
            z = sample(generator, generator.condition(part), noise[start : start + batch], num_steps)
            pictures += [m.to_bytes() for m in generator.decode(z)]
            if report is not None:
                report(min(start + batch, len(flat)), len(flat))
    rows = (Packed(torch.cat(pictures[i : i + num_noises])) for i in range(0, len(pictures), num_noises))
    return Samples(tuple(prompts), tuple(rows))


def measure(samples: Samples, gold: Measure) -> NDArray[np.float64]:
    """Exact value of every sample, (prompts, noises)."""
    return np.array([[gold(p, m) for m in row] for p, row in zip(samples.prompts, samples.media, strict=True)])


def compare(after: NDArray[np.float64], before: NDArray[np.float64], categories: Sequence[str]) -> dict[str, Any]:
    """Gain with its interval, overall and by category; prompts are the independent units."""
    names = np.array(categories)
    by = {c: paired_bootstrap(after[names == c], before[names == c]) for c in dict.fromkeys(categories)}
    total = paired_bootstrap(after, before)
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "gain": total.as_dict() | {"verdict": total.verdict},
        "categories": {
            c: {"before": float(before[names == c].mean()), "after": float(after[names == c].mean()), **i.as_dict()}
            for c, i in by.items()
        },
    }


def levels(values: NDArray[np.float64], categories: Sequence[str]) -> dict[str, Interval]:
    """Mean and interval overall and by category."""
    names = np.array(categories)
    return {"all": bootstrap(values)} | {c: bootstrap(values[names == c]) for c in dict.fromkeys(categories)}


@torch.no_grad()
def diversity(samples: Samples, features: Callable[[Sequence[Media]], torch.Tensor]) -> dict[str, float]:
    """Mean distance between samples of one prompt.

    Returns:
        feature: mean pairwise Euclidean distance of `features` (N, D); pixel: mean pairwise root mean square
        difference of pixels in [0, 1].
    """
    by_feature, by_pixel = [], []
    for row in samples.media:
        f = features(row).float()
        x = torch.cat([m.frames[:1] for m in row]).flatten(1).float()
        upper = torch.triu_indices(len(row), len(row), 1)
        by_feature.append(torch.cdist(f, f)[upper[0], upper[1]].mean().item())
        by_pixel.append((torch.cdist(x, x)[upper[0], upper[1]] / x.shape[1] ** 0.5).mean().item())
    return {"feature": float(np.mean(by_feature)), "pixel": float(np.mean(by_pixel))}
