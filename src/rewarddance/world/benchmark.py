"""The 240 fixed prompts: 48 in each of object, attribute, count, relation, concept, all held out of training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache

import numpy as np

from rewarddance.core.streams import stream
from rewarddance.world.grammar import HELD_OUT_WORDINGS, WORDINGS, phrase
from rewarddance.world.sampling import sample_spec
from rewarddance.world.scene import CATEGORIES, Category, Spec
from rewarddance.world.splits import Split, meaning

PER_CATEGORY = 48


@cache
def benchmark_specs(split: Split = "held_out", seed: int = 240) -> tuple[Spec, ...]:
    """Specifications with different meanings, `PER_CATEGORY` of each category, grouped by category.

    The benchmark has the seed 240; another one gives prompts of the same kind for development.
    """
    return _new_specs({c: stream(seed, "benchmark", split, c) for c in CATEGORIES}, split, set())


def _new_specs(
    streams: Mapping[Category, np.random.Generator], split: Split, taken: set[str], most_draws: int | None = None
) -> tuple[Spec, ...]:
    """`PER_CATEGORY` specifications of each category, or as many as `most_draws` draws give.

    Args:
        taken: meanings that none of them may have; theirs are added.
    """
    specs: list[Spec] = []
    for category, rng in streams.items():
        chosen: list[Spec] = []
        for _ in itertools.count() if most_draws is None else range(most_draws):
            if len(chosen) == PER_CATEGORY:
                break
            spec = sample_spec(rng, category, split)
            if spec.category == category and meaning(spec) not in taken:
                taken.add(meaning(spec))
                chosen.append(spec)
        specs += chosen
    return tuple(specs)


def benchmark_prompts(split: Split = "held_out") -> tuple[tuple[Category, str], ...]:
    """(category, prompt) of the benchmark. The OOD split uses held-out wordings as well as held-out kinds."""
    frames = (*WORDINGS, *HELD_OUT_WORDINGS) if split == "ood" else WORDINGS
    return tuple((s.category, phrase(s, frames[i % len(frames)])) for i, s in enumerate(benchmark_specs(split)))


DEVELOPMENT = 20
"""Development prompts of each category."""
SECOND_DRAWS = 1000
"""Draws of each category for the second benchmark."""


@cache
def _development() -> tuple[tuple[Spec, str], ...]:
    taken = {meaning(spec) for spec in benchmark_specs()}
    specs = [s for s in benchmark_specs("held_out", 241) if meaning(s) not in taken]
    by_category: dict[Category, list[tuple[Spec, str]]] = {}
    for i, spec in enumerate(specs):
        by_category.setdefault(spec.category, []).append((spec, phrase(spec, WORDINGS[i % len(WORDINGS)])))
    return tuple(entry for entries in by_category.values() for entry in entries[:DEVELOPMENT])


def development_prompts() -> tuple[tuple[Category, str], ...]:
    """100 held-out prompts with their categories, 20 of each. None has the meaning of a benchmark prompt."""
    return tuple((spec.category, prompt) for spec, prompt in _development())


@cache
def second_prompts(seed: int) -> tuple[tuple[Category, str], ...]:
    """(category, prompt) of a second benchmark: held-out prompts on which no setting was chosen.

    None has the meaning of a prompt of the benchmark or of `development_prompts`. A category has `PER_CATEGORY` prompts
    if `SECOND_DRAWS` draws give as many new meanings. Concepts are fewer, because the world has few of them.

    Args:
        seed: of the draws.
    """
    taken = {meaning(spec) for spec in (*benchmark_specs(), *(spec for spec, _ in _development()))}
    streams = {c: stream(seed, "second-benchmark", c) for c in CATEGORIES}
    specs = _new_specs(streams, "held_out", taken, SECOND_DRAWS)
    return tuple((s.category, phrase(s, WORDINGS[i % len(WORDINGS)])) for i, s in enumerate(specs))
