"""Batches of training scenes as arrays, each a pure function of a seed, a name and a step."""

from __future__ import annotations

import numpy as np

from rewarddance.core.streams import stream
from rewarddance.world.grammar import random_phrase
from rewarddance.world.render import render
from rewarddance.world.sampling import sample_pair
from rewarddance.world.scene import Spec


def scene_batch(seed: int, name: str, step: int, size: int) -> tuple[list[Spec], np.ndarray]:
    """`size` training specifications and a picture of each.

    Returns:
        Specifications, and uint8 pictures (size, CANVAS, CANVAS, 3).
    """
    rng = stream(seed, name, step)
    pairs = [sample_pair(rng) for _ in range(size)]
    return [spec for spec, _ in pairs], np.stack([render(scene) for _, scene in pairs])


def captioned_batch(seed: int, name: str, step: int, size: int) -> tuple[list[str], np.ndarray]:
    """As `scene_batch`, with prompts in random training wordings instead of specifications."""
    specs, images = scene_batch(seed, name, step, size)
    rng = stream(seed, name, "wording", step)
    return [random_phrase(s, rng) for s in specs], images
