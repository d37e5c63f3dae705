"""Batches of training scenes as arrays, each a pure function of a seed, a name and a step."""

from __future__ import annotations

import numpy as np

from rewarddance.core.streams import stream
from rewarddance.world.grammar import WORDINGS, phrase
from rewarddance.world.render import Image, render
from rewarddance.world.sampling import sample_pair
from rewarddance.world.scene import Spec


def scene_batch(seed: int, name: str, step: int, size: int) -> tuple[list[Spec], np.ndarray]:
    """`size` training specifications and a picture of each.

    Returns:
        Specifications, and uint8 pictures (size, CANVAS, CANVAS, 3).
    """
    rng = stream(seed, name, step)
    pairs = [sample_pair(rng) for _ in range(size)]
    images: list[Image] = [render(scene) for _, scene in pairs]
    return [spec for spec, _ in pairs], np.stack(images)


def captioned_batch(seed: int, name: str, step: int, size: int) -> tuple[list[str], np.ndarray]:
    """As `scene_batch`, with a prompt in a random training wording instead of the specification."""
    specs, images = scene_batch(seed, name, step, size)
    rng = stream(seed, name, "wording", step)
    return [phrase(s, WORDINGS[int(rng.integers(len(WORDINGS)))]) for s in specs], images
