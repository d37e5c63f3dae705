"""`rewarddance study oracle`: does another algorithm order the generator's pictures as the oracle does?

The oracle is classical image analysis. The other algorithm is a network trained on renders (`lab/reader.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rewarddance.core.preferences import all_pairs
from rewarddance.core.progress import tracked
from rewarddance.core.statistics import grouped_interval
from rewarddance.jobs.load import ASSETS, load_generator
from rewarddance.lab.reader import PictureReader
from rewarddance.search.best_of_n import draw_candidates
from rewarddance.world.benchmark import benchmark_prompts
from rewarddance.world.grammar import parse
from rewarddance.world.oracle import fidelity

CLEAR = 0.2
"""Smallest difference of oracle fidelity for a pair to count as clear."""


@torch.no_grad()
def study_oracle(*, every: int = 2, num: int = 8, seed: int = 0) -> dict[str, Any]:
    """Agreement on the order of two pictures of a prompt, for pairs with a clear difference of oracle fidelity.

    Returns:
        agreement (share of pairs; a pair that the reader rates equal counts half) with its 95% interval over prompts,
        num_pairs, and agreement by category.
    """
    prompts = benchmark_prompts()[::every]
    generator, reader = load_generator("tiny"), PictureReader.open(ASSETS / "reader-tiny")
    rng = torch.Generator().manual_seed(seed)
    rights: list[tuple[str, str, float]] = []
    for category, prompt in tracked(prompts, "oracle"):
        media = draw_candidates(generator, [prompt], num, rng, 10)[0]
        by_oracle = np.array([fidelity(m.to_numpy(), prompt) for m in media])
        by_reader = reader.fidelity(parse(prompt), media)
        rights += [(category, prompt, right) for right in _agreements(by_oracle, by_reader)]
    names = dict.fromkeys(c for c, _, _ in rights)
    return {
        **_share([(p, right) for _, p, right in rights]),
        "categories": {c: _share([(p, right) for name, p, right in rights if name == c]) for c in names},
    }


def _share(rights: list[tuple[str, float]]) -> dict[str, Any]:
    mean = float(np.mean([right for _, right in rights]))
    return {"agreement": mean, "agreement_ci": grouped_interval(rights), "num_pairs": len(rights)}


def _agreements(first: NDArray[np.float64], second: NDArray[np.float64]) -> list[float]:
    gaps = [(first[i] - first[j], second[i] - second[j]) for i, j in all_pairs(len(first))]
    return [0.5 + 0.5 * float(np.sign(a) * np.sign(b)) for a, b in gaps if abs(a) > CLEAR]
