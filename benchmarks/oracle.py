"""Processor time of the renderer and the oracle per picture (bars: 0.1 ms and 1 ms)."""

import time

import numpy as np
import torch

from rewarddance import load_generator
from rewarddance.core.runs import environment
from rewarddance.core.streams import stream
from rewarddance.search.best_of_n import draw_candidates
from rewarddance.world.corrupt import damage_randomly
from rewarddance.world.grammar import phrase
from rewarddance.world.oracle import fidelity, judge
from rewarddance.world.render import Image, render
from rewarddance.world.sampling import sample_pair

NUM, ROUNDS = 300, 7


def fastest(work) -> float:
    """Least processor milliseconds a picture over several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        rounds.append((time.process_time() - began) / NUM * 1e3)
    return float(np.min(rounds))


@torch.no_grad()
def drawn(prompts: list[str]) -> list[Image]:
    """A picture of each prompt by the shipped generator."""
    media = draw_candidates(load_generator("tiny"), prompts, 1, torch.Generator().manual_seed(0), 10)
    return [m[0].to_numpy() for m in media]


def main() -> None:
    rng = stream(0, "benchmark-oracle")
    pairs = [sample_pair(rng) for _ in range(NUM)]
    images = [render(scene) for _, scene in pairs]
    specs = [spec for spec, _ in pairs]
    judge(images[0], specs[0])  # fills the caches
    print(environment()["hardware"])
    print(f"render: {fastest(lambda: [render(s) for _, s in pairs]):.3f} ms")
    noise = [rng.integers(0, 256, images[0].shape, dtype=np.uint8) for _ in range(NUM)]
    sets = {
        "clean renders": images,
        "damaged renders": [damage_randomly(x, rng) for x in images],
        "the generator's": drawn([phrase(s) for s in specs]),
        "random pixels": noise,
    }
    for name, shown in sets.items():
        alone = fastest(lambda shown=shown: [fidelity(x, s) for x, s in zip(shown, specs, strict=True)])
        every = fastest(lambda shown=shown: [judge(x, s) for x, s in zip(shown, specs, strict=True)])
        print(f"{name}: fidelity {alone:.3f} ms, all criteria {every:.3f} ms")


if __name__ == "__main__":
    main()
