"""Search over paths (Ma et al., arXiv 2501.09732): noise a half-finished picture again, denoise it, keep the best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rewarddance.core.protocols import Generator
from rewarddance.core.task import Request
from rewarddance.generator.flow import add_more_noise
from rewarddance.search.config import PathsConfig
from rewarddance.search.run import Result, SearchRun
from rewarddance.search.verifier import Verifier


@torch.no_grad()
def search_over_paths(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Request],
    *,
    nfe: int,
    num_steps: int = 10,
    seed: int = 0,
    settings: PathsConfig = PathsConfig(),
    batch: int = 128,
) -> list[Result]:
    """Denoise N noises to the level `start`. Then, in rounds: noise each path with M fresh noises by `up`, denoise by
    `down`, score the pictures that the last steps predict, and keep the best N. After the last round, which ends at
    level 0, the best of the survivors is the result.

    From one level to another, the steps use the two levels and the generator's own times between them.

    Raises:
        BudgetError: the budget does not allow two branches a path (or as many as the settings say).
    """
    run = SearchRun(generator, verifier, prompts, nfe, num_steps, seed, batch)
    keep, first = settings.keep, stretch(run.times, 1.0, settings.start)
    rounds = [(sigma, top, stretch(run.times, top, after)) for sigma, top, after in settings.rounds()]
    beginning, per_branch = keep * (len(first) - 1), keep * sum(len(times) - 1 for _, _, times in rounds)
    run.need(beginning + per_branch * (settings.branches or 2))
    branches = settings.branches or (run.budget - beginning) // per_branch

    paths, _ = run.denoise(run.noise(keep), first)
    survivors = None
    for sigma, top, times in rounds:
        copies = paths.repeat_interleave(branches, 1)
        states, clean = run.denoise(add_more_noise(copies, run.noise(keep * branches), sigma, top), times)
        survivors = run.judged(states, clean).best(keep)
        paths = survivors.states
    assert survivors is not None  # `rounds` has one at least
    return run.results(survivors)


def stretch(times: Tensor, top: float, bottom: float) -> Tensor:
    """The times from `top` down to `bottom`: both ends, and the entries of `times` between them. (S + 1,) for S
    steps."""
    between = times[(times < top - 1e-4) & (times > bottom + 1e-4)]
    return torch.cat([times.new_tensor([top]), between, times.new_tensor([bottom])])
