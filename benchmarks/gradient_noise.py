"""How much of DiffusionNFT's gradient is noise: the cosine between the gradients of independent batches.

Every batch has 12 prompts x 8 pictures of the embedded generator, scored by the shipped judge. All settings see the
same pictures. A setting's figures are the mean cosine over all pairs of batches with its standard error (from leaving
out one batch at a time), the pictures that one update noises, and the seconds of its gradient. A mean
cosine c means that the ratio of signal to noise in a gradient is c / (1 - c), both as squared norms. A setting with
twice this ratio needs half of the pictures.

Usage: python benchmarks/gradient_noise.py [--batches 16] [--settings late extremes ...]
"""

import argparse
import time
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.align.algorithms import Nft
from rewarddance.align.config import AlignConfig
from rewarddance.align.rollouts import Rollouts
from rewarddance.align.scoring import score_groups
from rewarddance.core.runs import environment
from rewarddance.jobs.load import load_generator, load_judge, load_task

PROMPTS, GROUP, STEPS = 12, 8, 6
LATE = {"times": (0.6, 0.95)}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all times": ({}, {"draws": 1}),
    "0.02 to 0.2": ({"times": (0.02, 0.2)}, {"draws": 1}),
    "0.2 to 0.4": ({"times": (0.2, 0.4)}, {"draws": 1}),
    "0.4 to 0.6": ({"times": (0.4, 0.6)}, {"draws": 1}),
    "0.6 to 0.8": ({"times": (0.6, 0.8)}, {"draws": 1}),
    "0.8 to 0.9": ({"times": (0.8, 0.9)}, {"draws": 1}),
    "0.9 to 0.98": ({"times": (0.9, 0.98)}, {"draws": 1}),
    "late": (LATE, {"draws": 1}),
    "late, opposite noises": (LATE, {"draws": 2}),
    "late, 2 + 2 of 8": (LATE, {"draws": 1, "extremes": 2}),
    "late, 2 + 2 of 8, opposite noises": (LATE, {"draws": 2, "extremes": 2}),
    "late, 1 + 1 of 8, opposite noises": (LATE, {"draws": 2, "extremes": 1}),
}
"""Settings of `rollout` and of `nft`."""


def config_of(name: str) -> AlignConfig:
    rollout, nft = SETTINGS[name]
    return AlignConfig.model_validate(
        {
            "algorithm": "nft",
            "batch_size": PROMPTS * GROUP,
            "rollout": {"num_steps": STEPS, "group_size": GROUP, "score": "pointwise", **rollout},
            "nft": {"frozen_weight": 0.0, **nft},
        }
    )


def gradient(algorithm: Nft, rollouts: Rollouts, advantages: Tensor, index: int) -> Tensor:
    """The gradient of all parameters that have one, flat. The first matrices of a new LoRA adapter have none."""
    module = algorithm.generator.trainable()
    parameters = [p for m in module.values() for p in m.parameters() if p.requires_grad]
    for p in parameters:
        p.grad = None
    algorithm.loss(rollouts, advantages, index, 0)["loss"].backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def cosine(gradients: Tensor) -> tuple[float, float]:
    """Mean cosine over the pairs of rows, and its jackknife standard error over rows."""
    unit = F.normalize(gradients, dim=1)
    products, num = unit @ unit.T, len(unit)

    def mean(rows: list[int]) -> float:
        return float(torch.stack([products[i, j] for i, j in combinations(rows, 2)]).mean())

    left_out = torch.tensor([mean([i for i in range(num) if i != k]) for k in range(num)])
    return mean(list(range(num))), float(((num - 1) * left_out.var(correction=0)).sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(environment(), flush=True)
    generator, judge = load_generator("tiny"), load_judge("tiny")
    generator.add_lora(16, 32.0)
    prompts, _ = load_task("embedded").prompts(options.batches * PROMPTS, 8, 7)
    algorithm = Nft(config_of("all times"), generator, len(prompts))
    gradients: dict[str, list[Tensor]] = {name: [] for name in options.settings}
    seconds = dict.fromkeys(options.settings, 0.0)
    for index in range(options.batches):
        rollouts = algorithm.draw(prompts[index * PROMPTS : (index + 1) * PROMPTS], range(PROMPTS), index)
        scores = score_groups(judge, rollouts.prompts, rollouts.pictures, "pointwise", "fidelity")
        advantages, _ = algorithm.advantages((), scores.values)
        for name in options.settings:
            algorithm.config, start = config_of(name), time.perf_counter()
            gradients[name].append(gradient(algorithm, rollouts, advantages, index))
            seconds[name] += time.perf_counter() - start
    for name, rows in gradients.items():
        mean, error = cosine(torch.stack(rows))
        nft = config_of(name).nft
        noised = PROMPTS * nft.draws * (2 * nft.extremes or GROUP)
        each = seconds[name] / options.batches
        print(f"{name:36s} cosine {mean:.3f} (error {error:.3f})  {noised:3d} noised, {each:.1f} s", flush=True)


if __name__ == "__main__":
    main()
