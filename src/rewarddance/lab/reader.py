"""The reader: a network that detects objects, to check the oracle.

The oracle is classical image analysis. The reader is a vision tower. Each patch predicts the kind and the centre of the
object that covers it (`world/build/vision.py`). Patches that predict the same centre are one object, as in Hough
voting. It was trained on renders alone. Both use the same definition of fidelity (`world/oracle.fulfilment`), but
different detections.
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
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.world.build.tiny_vlm import SIZES, new_tokenizer, new_vlm
from rewarddance.world.build.vision import NOTHING, Heads, VisionConfig
from rewarddance.world.oracle import both_right, fulfilment
from rewarddance.world.sampling import TRAIN_STYLES
from rewarddance.world.scene import BACKGROUNDS, CANVAS, COLOURS, SHAPES, Spec

Array = NDArray[np.float64]
NEAR = 6.0
"""Largest distance in pixels between centres that patches of one object predict. Objects are at least twice as far
apart."""
MIN_PATCHES = 2.0
"""Smallest sum of the patches' probabilities of being covered for a cluster to be an object."""


@dataclass(frozen=True)
class DetectedObject:
    """One object: its centre in pixels, the probabilities of its kind (colours, shapes) and of being large."""

    x: float
    y: float
    kinds: Array
    large: float


@dataclass(frozen=True)
class Reading:
    """One picture: its objects and the probability of every background."""

    objects: tuple[DetectedObject, ...]
    backgrounds: Array


class PictureReader:
    """A vision tower with its heads.

    Args:
        tower: gives patch features, (N, 1 + P, width).
        heads: kinds, centres and sizes from them.
    """

    def __init__(self, tower: nn.Module, heads: Heads) -> None:
        self.tower, self.heads = tower.eval(), heads.eval()
        self.prepare = Preprocessor.square(CANVAS)

    @classmethod
    def open(cls, folder: Path) -> PictureReader:
        """Load `vision.safetensors` and `heads.safetensors` of a folder that `pretrain_vision` wrote."""
        size = VisionConfig().size
        tower, heads = new_vlm(size, new_tokenizer()).model.vision_tower, Heads(SIZES[size].vision_width)
        for name, part in (("vision", tower), ("heads", heads)):
            weights = load_file(folder / f"{name}.safetensors")
            part.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return cls(tower, heads)

    @torch.no_grad()
    def read(self, media: Sequence[Media]) -> list[Reading]:
        """The content of every picture."""
        states = self.tower(pixel_values=self.prepare(list(media))).last_hidden_state[:, 1:]
        kinds = self.heads.kind(states).softmax(-1).double().numpy()
        facts = self.heads.facts(states).double().numpy()
        whole = self.heads.whole(states.mean(1))[:, len(TRAIN_STYLES) :].softmax(-1).double().numpy()
        return [Reading(_cluster(k, f), w) for k, f, w in zip(kinds, facts, whole, strict=True)]

    def fidelity(self, spec: Spec, media: Sequence[Media]) -> Array:
        """Fidelity by the reader, (N,) in [0, 1]."""
        return np.array([_score(r, spec) for r in self.read(media)])


def _cluster(kinds: Array, facts: Array) -> tuple[DetectedObject, ...]:
    """Patches to objects. The most certain patch and all patches with a near centre form the first one, and so on.

    Args:
        kinds: (P, kinds + 1) probabilities; the last one is for "covered by nothing".
        facts: (P, 3): centre x and y in [0, 1], logit of being large.
    """
    covered, centres = 1 - kinds[:, NOTHING], facts[:, :2] * CANVAS
    weight = np.where(covered > 0.5, covered, 0.0)
    objects = []
    while weight.max() > 0:
        near = np.hypot(*(centres - centres[weight.argmax()]).T) < NEAR
        centre = np.average(centres[near], 0, weights=weight[near])
        near = (np.hypot(*(centres - centre).T) < NEAR) | (near & (weight > 0))
        weights = np.where(near, weight, 0.0)
        weight = np.where(near, 0.0, weight)
        if weights.sum() < MIN_PATCHES:
            continue
        share = weights / weights.sum()
        given_covered = kinds[:, :NOTHING] / np.maximum(covered, 1e-6)[:, None]
        large = 1 / (1 + np.exp(-share @ facts[:, 2]))
        x, y = share @ centres
        objects.append(
            DetectedObject(float(x), float(y), (share @ given_covered).reshape(len(COLOURS), len(SHAPES)), float(large))
        )
    return tuple(objects)


def _score(reading: Reading, spec: Spec) -> float:
    def agreement(detected: DetectedObject, colour: str, shape: str, large: bool) -> float:
        right_colour = float(detected.kinds[COLOURS.index(colour)].sum())  # type: ignore[arg-type]
        right_shape = float(detected.kinds[:, SHAPES.index(shape)].sum())  # type: ignore[arg-type]
        return both_right(right_colour, right_shape, detected.large if large else 1 - detected.large)

    table = np.array([[agreement(o, t.colour, t.shape, t.large) for t in spec.instances()] for o in reading.objects])
    ground = float(reading.backgrounds[BACKGROUNDS.index(spec.background)])
    return fulfilment(reading.objects, table, spec, 0.0, ground)[0]
