"""All searches by their kind."""

from __future__ import annotations

from collections.abc import Sequence

from rewarddance.core.protocols import Generator
from rewarddance.core.task import Request
from rewarddance.search.best_of_n import best_of_n
from rewarddance.search.config import (
    BestOfNConfig,
    EvolutionConfig,
    FkConfig,
    PathsConfig,
    SearchConfig,
    ZeroOrderConfig,
)
from rewarddance.search.evolution import evolution
from rewarddance.search.fk_steering import fk_steering
from rewarddance.search.paths import search_over_paths
from rewarddance.search.run import Result
from rewarddance.search.verifier import Verifier
from rewarddance.search.zero_order import zero_order


def run_search(
    generator: Generator,
    verifier: Verifier,
    prompts: Sequence[Request],
    *,
    nfe: int,
    num_steps: int = 10,
    seed: int = 0,
    settings: SearchConfig = BestOfNConfig(),
    batch: int = 128,
) -> list[Result]:
    """Run the search that the settings choose; one result a prompt.

    A prompt's result depends on seed, prompt and settings, and on the number of earlier prompts with the same text. It
    does not depend on the other prompts or on `batch`.

    Args:
        prompts: texts, or requests with the picture that a clip begins with; the verifier sees it too.
        nfe: largest number of forward passes of the generator for each prompt. A guided step has two.
            References that the verifier drew are part of it.
        num_steps: steps of a whole sample.
        batch: rows that the generator computes at once.

    Raises:
        BudgetError: the budget is too small for the settings; the message names the smallest one.
    """
    rest = {"nfe": nfe, "num_steps": num_steps, "seed": seed, "batch": batch}
    match settings:
        case BestOfNConfig():
            return best_of_n(generator, verifier, prompts, settings=settings, **rest)
        case PathsConfig():
            return search_over_paths(generator, verifier, prompts, settings=settings, **rest)
        case ZeroOrderConfig():
            return zero_order(generator, verifier, prompts, settings=settings, **rest)
        case FkConfig():
            return fk_steering(generator, verifier, prompts, settings=settings, **rest)
        case EvolutionConfig():
            return evolution(generator, verifier, prompts, settings=settings, **rest)
