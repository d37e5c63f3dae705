"""Settings of the VLM's pretraining by size: as shipped, or in large batches that keep a GPU busy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.world.build.tiny_vlm import SIZES
from rewarddance.world.build.vision import VisionConfig
from rewarddance.world.build.vlm import VlmConfig

SHIPPED_STEPS = VlmConfig().loop.num_steps
RATE = 4e-3
"""Learning rate (Muon) of the smallest size in batches of `REFERENCE_BATCH`: twice the rate of its batches of 32."""
REFERENCE_BATCH = 512


@dataclass(frozen=True)
class Batch:
    """Lessons or pictures of a step, and lessons of one pass, which the activations in memory grow with."""

    size: int
    per_pass: int


LARGE: dict[str, Batch] = {
    "tiny-2m": Batch(512, 256),
    "tiny-20m": Batch(512, 256),
    "tiny-200m": Batch(256, 128),
}
"""Passes of half a batch have less padding, because a step's lessons are sorted by length. The activations of a pass
should stay under 50 GB in every size; `benchmarks/pretraining.py` prints the peak."""


def scaled(optim: OptimConfig, width: int) -> OptimConfig:
    """The smallest size's learning rate for a wider tower, scaled so that updates change outputs by the same amount.

    AdamW's updates are nearly of rank one, so their effect grows with the width (Yang et al. 2022, Tensor Programs V,
    Table 8). Muon's are orthogonal with a fixed root mean square, so their effect grows with the square root of it.
    """
    ratio = SIZES["tiny-2m"].text_width / width
    return optim.model_copy(update={"lr": optim.lr * (math.sqrt(ratio) if optim.name == "muon" else ratio)})


def vision_settings(size: str, num_steps: int, large: bool = False, **keys: Any) -> VisionConfig:
    """The vision tower's pretraining in a key of `SIZES`.

    Args:
        large: large batches with their learning rate.
        keys: of `VisionConfig`, such as `device`.
    """
    config = VisionConfig(size=size, loop=_loop(num_steps, large), **keys)
    batch = {"batch_size": _batch(size).size} if large else {}
    return config.model_copy(update={"optim": _rate(config.optim, size, SIZES[size].vision_width, large), **batch})


def vlm_settings(size: str, num_steps: int, large: bool = False, **keys: Any) -> VlmConfig:
    """The VLM's pretraining in a key of `SIZES`; arguments as in `vision_settings`.

    Lessons on the generator's pictures begin after the same share of the steps as in the shipped VLM.
    """
    config = VlmConfig(size=size, loop=_loop(num_steps, large), **keys)
    batch = {"batch_size": _batch(size).size, "micro_batch": _batch(size).per_pass} if large else {}
    drawn_from = round(config.drawn_from * num_steps / SHIPPED_STEPS)
    optim = _rate(config.optim, size, SIZES[size].text_width, large)
    return config.model_copy(update={"optim": optim, "drawn_from": drawn_from, **batch})


def _batch(size: str) -> Batch:
    return LARGE.get(size, LARGE["tiny-2m"])


def _rate(optim: OptimConfig, size: str, width: int, large: bool) -> OptimConfig:
    """The rate by width and, in large batches, by the square root of the batch's size."""
    if large:
        optim = optim.model_copy(update={"lr": RATE * math.sqrt(_batch(size).size / REFERENCE_BATCH)})
    return scaled(optim, width)


def _loop(num_steps: int, large: bool) -> LoopConfig:
    """Large models are saved by time alone, because a checkpoint of 200M parameters has 2.4 GB."""
    save_every = max(1, num_steps) if large else 200
    return LoopConfig(num_steps=num_steps, log_every=10, validate_every=500, save_every=save_every, save_seconds=300)
