"""Evolution: cross-entropy search (Rubinstein, 1999) over the low frequencies of the noise, which decide the layout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rewarddance.core.errors import ConfigError
from rewarddance.core.protocols import Generator
from rewarddance.core.task import Request
from rewarddance.search.config import EvolutionConfig
from rewarddance.search.run import Result, SearchRun, portions
from rewarddance.search.verifier import Verifier


@torch.no_grad()
def evolution(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Request],
    *,
    nfe: int,
    num_steps: int = 10,
    seed: int = 0,
    settings: EvolutionConfig = EvolutionConfig(),
    batch: int = 128,
) -> list[Result]:
    """Draw populations of noises. The lowest frequencies of each come from a normal distribution with independent
    coordinates, first N(0, 1), then fitted to the elites of the population before. Higher frequencies are always fresh
    white noise. The result is the best picture of all populations.

    Raises:
        BudgetError: the budget does not allow one sample.
        ConfigError: the latents have no height and width.
    """
    run = SearchRun(generator, verifier, prompts, nfe, num_steps, seed, batch)
    mean = std = carried = None
    for size in portions(run.num_samples, settings.population):
        white = run.noise(size)
        if white.ndim < 4:
            raise ConfigError(f"evolution: needs latents with height and width, got shape {tuple(white.shape[2:])}")
        noise = white if mean is None or std is None else with_low(white, mean + std * low(white, settings.frequencies))
        everything = run.judged(noise, run.sample(noise), carried)
        elites = everything.last(size).best(settings.elites)
        mean, std = fitted(low(elites.states, settings.frequencies), ~elites.scores.isnan(), mean, std)
        carried = everything.best()
    assert carried is not None  # the budget allows one sample
    return run.results(carried)


def fitted(elites: Tensor, answered: Tensor, mean: Tensor | None, std: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the elites, coordinate by coordinate.

    The standard deviation is that of the elites themselves (divided by their number). So mean^2 + std^2 is the elites'
    second moment, and the next noises are as strong as theirs.

    Args:
        elites: (P, E, ...); answered: (P, E), False for candidates without a score, which do not count.
        mean, std: (P, 1, ...) of before, kept for prompts with fewer than two answered elites; None is N(0, 1).
    """
    mask = answered.to(elites.device).view(*answered.shape, *([1] * (elites.ndim - 2)))
    num = mask.sum(1, keepdim=True)
    new_mean = torch.where(mask, elites, 0).sum(1, keepdim=True) / num.clamp(min=1)
    new_std = torch.where(mask, elites - new_mean, 0).square().sum(1, keepdim=True).div(num.clamp(min=1)).sqrt()
    old_mean = torch.zeros_like(new_mean) if mean is None else mean
    old_std = torch.ones_like(new_std) if std is None else std
    return torch.where(num >= 2, new_mean, old_mean), torch.where(num >= 2, new_std, old_std)


def low(noise: Tensor, side: int) -> Tensor:
    """The `side` x `side` lowest coefficients of the cosine transform over height and width, (..., side, side)."""
    return _transform(noise)[..., :side, :side]


def with_low(noise: Tensor, coefficients: Tensor) -> Tensor:
    """The noise with its lowest coefficients replaced by `coefficients` (..., side, side)."""
    transformed = _transform(noise)
    rows, columns = coefficients.shape[-2:]
    transformed[..., :rows, :columns] = coefficients
    return cosine_basis(noise.shape[-2], noise).T @ transformed @ cosine_basis(noise.shape[-1], noise)


def _transform(noise: Tensor) -> Tensor:
    return cosine_basis(noise.shape[-2], noise) @ noise @ cosine_basis(noise.shape[-1], noise).T


def cosine_basis(size: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II as a matrix (frequencies, places). White noise stays white under it."""
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (n + 0.5) * k) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(like)
