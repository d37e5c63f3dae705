"""Settings of the pretraining of vision tower and VLM, for every size of `SIZES`.

The batches are those of the shipped models, or large ones, which keep a GPU busy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.world.build.tiny_vlm import SIZES
from rewarddance.world.build.vision import VisionConfig
from rewarddance.world.build.vlm_config import VlmConfig

SHIPPED_STEPS = VlmConfig().loop.num_steps
RATE = 4e-3
"""Learning rate (Muon) of the smallest size in batches of `REFERENCE_BATCH`; twice the rate of the shipped batches."""
REFERENCE_BATCH = 512
"""Lessons, or pictures, of a step."""


@dataclass(frozen=True)
class Batch:
    """Sizes of a large batch.

    Attributes:
        size: pictures (vision tower) or lessons (VLM) of a step.
        per_pass: lessons of one forward and backward pass. Memory for activations grows with it. The vision tower
            takes the whole batch in one pass.
    """

    size: int
    per_pass: int


LARGE: dict[str, Batch] = {
    "tiny-2m": Batch(512, 256),
    "tiny-20m": Batch(512, 256),
    "tiny-200m": Batch(256, 128),
}
"""By size. A step's lessons are sorted by length, so two passes have less padding than one. The goal is less than 50 GB
of activations in a pass; `benchmarks/pretraining.py` prints the peak."""


def scaled(optim: OptimConfig, width: int) -> OptimConfig:
    """The optimizer with the learning rate for another width, from the rate for the width of the smallest size.

    Updates should change outputs by the same amount at every width. The effect of AdamW's updates grows with the width,
    because they are nearly of rank one (Yang et al. 2022, Tensor Programs V, Table 8), so its rate is divided by the
    ratio of the widths. Muon's updates are orthogonal and have a fixed root mean square, so their effect grows with the
    square root of the width, and its rate is divided by the square root of the ratio.
    """
    ratio = SIZES["tiny-2m"].text_width / width
    return optim.model_copy(update={"lr": optim.lr * (math.sqrt(ratio) if optim.name == "muon" else ratio)})


def vision_settings(size: str, num_steps: int, large: bool = False, **keys: Any) -> VisionConfig:
    """The configuration of the vision tower's pretraining.

    Args:
        size: a key of `SIZES`.
        large: large batches (`LARGE`) with their learning rate.
        keys: of `VisionConfig`, such as `device`.
    """
    config = VisionConfig(size=size, loop=_loop(num_steps, large), **keys)
    batch = {"batch_size": _batch(size).size} if large else {}
    return config.model_copy(update={"optim": _rate(config.optim, size, SIZES[size].vision_width, large), **batch})


def vlm_settings(size: str, num_steps: int, large: bool = False, **keys: Any) -> VlmConfig:
    """The configuration of the VLM's pretraining; arguments as in `vision_settings`.

    Lessons on the generator's pictures begin after the same share of the steps as in the shipped VLM's pretraining.
    """
    config = VlmConfig(size=size, loop=_loop(num_steps, large), **keys)
    batch = {"batch_size": _batch(size).size, "micro_batch": _batch(size).per_pass} if large else {}
    drawn_from = round(config.drawn_from * num_steps / SHIPPED_STEPS)
    optim = _rate(config.optim, size, SIZES[size].text_width, large)
    return config.model_copy(update={"optim": optim, "drawn_from": drawn_from, **batch})


def _batch(size: str) -> Batch:
    """The large batch of a size; a size that is not in `LARGE` has that of the smallest."""
    return LARGE.get(size, LARGE["tiny-2m"])


def _rate(optim: OptimConfig, size: str, width: int, large: bool) -> OptimConfig:
    """The optimizer with the rate for this width. In large batches the rate is `RATE`, times the square root of the
    batch's size over `REFERENCE_BATCH`."""
    if large:
        optim = optim.model_copy(update={"lr": RATE * math.sqrt(_batch(size).size / REFERENCE_BATCH)})
    return scaled(optim, width)


def _loop(num_steps: int, large: bool) -> LoopConfig:
    """The loop's settings: a checkpoint every 300 seconds and at the end, and with the shipped batches every 200 steps
    too. Not so with large batches, because a checkpoint of 200M parameters has 2.4 GB."""
    save_every = max(1, num_steps) if large else 200
    return LoopConfig(num_steps=num_steps, log_every=10, validate_every=500, save_every=save_every, save_seconds=300)
