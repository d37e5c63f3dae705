"""Best-of-N: draw N samples of every prompt and keep the best. NFE = N times the steps.

`best_of_n` is the search, with the signature of all searches. `draw_candidates` and `select` are its two halves for
callers that keep all candidates, such as the reference bank; `select` ranks by round robin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewarddance.core.media import Media
from rewarddance.core.protocols import Generator
from rewarddance.core.task import Request, text_of
from rewarddance.core.types import RewardModel
from rewarddance.generator.trace import draw
from rewarddance.reward.rank import rank_all
from rewarddance.search.config import BestOfNConfig
from rewarddance.search.run import Result, SearchRun
from rewarddance.search.verifier import Verifier


@dataclass(frozen=True)
class Selection:
    """The result of best-of-N for one prompt.

    Attributes:
        candidates: the N samples.
        best: index of the winner; None if the judge refused to compare any two of them.
        margin: (N,) mean log-odds of each candidate against the others, NaN where every comparison was refused.
        num_refused: comparisons that the judge refused.
    """

    prompt: str
    candidates: tuple[Media, ...]
    best: int | None
    margin: Tensor
    num_refused: int = 0


def draw_candidates(
    generator: Generator, prompts: Sequence[Request], num: int, rng: torch.Generator, num_steps: int, batch: int = 128
) -> list[list[Media]]:
    """`num` samples of every prompt. The noise depends on `rng` alone, not on `batch`."""
    flat = [p for p in prompts for _ in range(num)]
    pictures = list(draw(generator, flat, generator.noise(len(flat), rng), num_steps, batch=batch))
    return [pictures[i : i + num] for i in range(0, len(pictures), num)]


def select(
    judge: RewardModel, prompts: Sequence[Request], candidates: Sequence[Sequence[Media]], criterion: str | None = None
) -> list[Selection]:
    """The winner of every prompt by round robin. All prompts are judged in one call."""
    rankings = rank_all(judge, prompts, candidates, criterion)
    return [
        Selection(text_of(p), tuple(c), r.order[0] if r.order else None, r.margin, len(r.refused))
        for p, c, r in zip(prompts, candidates, rankings, strict=True)
    ]


@torch.no_grad()
def best_of_n(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Request],
    *,
    nfe: int,
    num_steps: int = 10,
    seed: int = 0,
    settings: BestOfNConfig = BestOfNConfig(),
    batch: int = 128,
) -> list[Result]:
    """Draw as many samples of every prompt as `nfe` forward passes allow, and keep the one with the highest score.

    Raises:
        BudgetError: the budget does not allow one sample.
    """
    run = SearchRun(generator, verifier, prompts, nfe, num_steps, seed, batch)
    noise = run.noise(run.num_samples)
    return run.results(run.judged(noise, run.sample(noise)).best())
