"""The 240 fixed prompts: 48 in each of object, attribute, count, relation, concept, all held out of training."""

from __future__ import annotations

from functools import cache

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
    specs: list[Spec] = []
    seen: set[str] = set()
    for category in CATEGORIES:
        rng = stream(seed, "benchmark", split, category)
        while sum(s.category == category for s in specs) < PER_CATEGORY:
            spec = sample_spec(rng, category, split)
            if spec.category == category and meaning(spec) not in seen:
                seen.add(meaning(spec))
                specs.append(spec)
    return tuple(specs)


def benchmark_prompts(split: Split = "held_out") -> tuple[tuple[Category, str], ...]:
    """(category, prompt) of the benchmark. The OOD split uses held-out wordings as well as held-out kinds."""
    frames = (*WORDINGS, *HELD_OUT_WORDINGS) if split == "ood" else WORDINGS
    return tuple((s.category, phrase(s, frames[i % len(frames)])) for i, s in enumerate(benchmark_specs(split)))
