"""The reader: a network that finds objects, the oracle's second opinion.

The oracle is classical image analysis. The reader is a vision tower whose patches each name the object that covers
them and point at its centre (`jobs/build/vision.py`); patches that point at the same place are one object, as in Hough
voting. It was trained on renders alone. What the two share is the definition of fidelity (`world/oracle.fulfilment`),
not the eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from rewarddance.core.media import Media
from rewarddance.jobs.build.vision import NOTHING, Heads, VisionConfig
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.vlm.tiny import SIZES, new_tokenizer, new_vlm
from rewarddance.world.oracle import both_right, fulfilment
from rewarddance.world.sampling import TRAIN_STYLES
from rewarddance.world.scene import BACKGROUNDS, CANVAS, COLOURS, SHAPES, Spec

Array = NDArray[np.float64]
NEAR = 6.0
"""Pixels between the centres that two patches of one object may point at; objects stand at least twice as far apart."""
LEAST_PATCHES = 2.0
"""Sum of the probabilities that a patch is covered, under which a cluster is no object."""


@dataclass(frozen=True)
class Read:
    """One object found: its centre in pixels, the probabilities of its kind (colours, shapes) and of being large."""

    x: float
    y: float
    kinds: Array
    large: float


@dataclass(frozen=True)
class Reading:
    """One picture: its objects and the probability of every background."""

    objects: tuple[Read, ...]
    backgrounds: Array


class Reader:
    """A vision tower with its heads.

    Args:
        tower: gives patch features, (N, 1 + P, width).
        heads: kinds, centres and sizes from them.
    """

    def __init__(self, tower: nn.Module, heads: Heads) -> None:
        self.tower, self.heads = tower.eval(), heads.eval()
        self.prepare = Preprocessor.square(CANVAS)

    @classmethod
    def open(cls, folder: Path) -> Reader:
        """Load `vision.safetensors` and `heads.safetensors` of a folder that `train_vision` wrote."""
        size = VisionConfig().size
        tower, heads = new_vlm(size, new_tokenizer()).model.vision_tower, Heads(SIZES[size].vision_width)
        for name, part in (("vision", tower), ("heads", heads)):
            weights = load_file(folder / f"{name}.safetensors")
            part.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return cls(tower, heads)

    @torch.no_grad()
    def read(self, media: Sequence[Media]) -> list[Reading]:
        """What is in every picture."""
        seen = self.tower(pixel_values=self.prepare(list(media))).last_hidden_state[:, 1:]
        kinds = self.heads.kind(seen).softmax(-1).double().numpy()
        facts = self.heads.facts(seen).double().numpy()
        whole = self.heads.whole(seen.mean(1))[:, len(TRAIN_STYLES) :].softmax(-1).double().numpy()
        return [Reading(_cluster(k, f), w) for k, f, w in zip(kinds, facts, whole, strict=True)]

    def fidelity(self, spec: Spec, media: Sequence[Media]) -> Array:
        """P as the reader sees it, (N,) in [0, 1]."""
        return np.array([_score(r, spec) for r in self.read(media)])


def _cluster(kinds: Array, facts: Array) -> tuple[Read, ...]:
    """Patches to objects: the surest patch founds a cluster of all that point near where it points, and so on.

    Args:
        kinds: (P, kinds + 1) probabilities, the last one for "covered by nothing".
        facts: (P, 3): centre x and y in [0, 1], logit of being large.
    """
    covered, centres = 1 - kinds[:, NOTHING], facts[:, :2] * CANVAS
    weight = np.where(covered > 0.5, covered, 0.0)
    found = []
    while weight.max() > 0:
        near = np.hypot(*(centres - centres[weight.argmax()]).T) < NEAR
        centre = np.average(centres[near], 0, weights=weight[near])
        near = (np.hypot(*(centres - centre).T) < NEAR) | (near & (weight > 0))
        mine = np.where(near, weight, 0.0)
        weight = np.where(near, 0.0, weight)
        if mine.sum() < LEAST_PATCHES:
            continue
        share = mine / mine.sum()
        sure = kinds[:, :NOTHING] / np.maximum(covered, 1e-6)[:, None]
        large = 1 / (1 + np.exp(-share @ facts[:, 2]))
        x, y = share @ centres
        found.append(Read(float(x), float(y), (share @ sure).reshape(len(COLOURS), len(SHAPES)), float(large)))
    return tuple(found)


def _score(reading: Reading, spec: Spec) -> float:
    def agreement(found: Read, colour: str, shape: str, large: bool) -> float:
        right = found.kinds[COLOURS.index(colour)].sum(), found.kinds[:, SHAPES.index(shape)].sum()  # type: ignore[arg-type]
        return both_right(float(right[0]), float(right[1]), found.large if large else 1 - found.large)

    table = np.array([[agreement(o, t.colour, t.shape, t.large) for t in spec.instances()] for o in reading.objects])
    ground = float(reading.backgrounds[BACKGROUNDS.index(spec.background)])
    return fulfilment(reading.objects, table, spec, 0.0, ground)[0]
