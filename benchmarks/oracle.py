"""Processor time of the renderer and the oracle per picture (bars: 0.1 ms and 1 ms)."""

import time

import numpy as np

from rewarddance.core.runs import environment
from rewarddance.core.streams import stream
from rewarddance.world.oracle import fidelity, judge
from rewarddance.world.render import render
from rewarddance.world.sampling import sample_pair

NUM, ROUNDS = 300, 7


def best(work) -> float:
    """Least processor milliseconds a picture over several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        rounds.append((time.process_time() - began) / NUM * 1e3)
    return float(np.min(rounds))


def main() -> None:
    rng = stream(0, "benchmark-oracle")
    pairs = [sample_pair(rng) for _ in range(NUM)]
    images = [render(scene) for _, scene in pairs]
    judge(images[0], pairs[0][0])  # caches
    print(environment()["hardware"])
    print(f"render          {best(lambda: [render(s) for _, s in pairs]):.3f} ms")
    print(f"oracle fidelity {best(lambda: [fidelity(x, p) for x, (p, _) in zip(images, pairs, strict=True)]):.3f} ms")
    print(f"oracle judge    {best(lambda: [judge(x, p) for x, (p, _) in zip(images, pairs, strict=True)]):.3f} ms")


if __name__ == "__main__":
    main()
