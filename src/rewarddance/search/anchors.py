"""Makes a verifier from any judge, and draws the anchors that a pairwise judge compares with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rewarddance.core.protocols import Generator
from rewarddance.core.task import Request
from rewarddance.core.types import RewardModel
from rewarddance.generator.trace import draw
from rewarddance.search.config import VerifierConfig
from rewarddance.search.run import rngs_of
from rewarddance.search.verifier import Anchored, Pointwise, RoundRobin, Verifier, answers_alone


def verifier_of(
    judge: RewardModel,
    generator: Generator,
    prompts: Sequence[Request],
    *,
    num_steps: int,
    seed: int,
    settings: VerifierConfig = VerifierConfig(),
    criterion: str | None = None,
    batch: int = 128,
) -> Verifier:
    """The judge as a verifier of these prompts.

    Args:
        seed: of the anchors' noise, which depends on seed and prompt alone.
        batch: anchors that are drawn at once.
    """
    ask = settings.ask
    if ask == "auto":
        ask = "pointwise" if answers_alone(judge, criterion) else "anchor"
    if ask == "pointwise":
        return Pointwise(judge, criterion)
    if ask == "round_robin":
        return RoundRobin(judge, criterion)
    num = settings.num_anchors
    noise = torch.cat([generator.noise(num, rng) for rng in rngs_of(seed, "anchors", prompts)])
    flat = [p for p in prompts for _ in range(num)]
    pictures = list(draw(generator, flat, noise, num_steps, batch=batch, title="anchors"))
    anchors = [pictures[i : i + num] for i in range(0, len(pictures), num)]
    return Anchored(judge, anchors, criterion, nfe=num * num_steps * generator.passes, decodes=num)
