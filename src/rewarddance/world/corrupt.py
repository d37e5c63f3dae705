"""Ways to make a picture worse: edits of the scene (its content), and damage of the pixels (their quality)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from scipy import ndimage

from rewarddance.world.render import Image
from rewarddance.world.sampling import MIN_GAP, TRAIN_STYLES
from rewarddance.world.scene import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    LARGE_SIZES,
    REGULAR_SIZES,
    SHAPES,
    Placed,
    Scene,
    gap,
)
from rewarddance.world.splits import scene_is_trainable

T = TypeVar("T")

Edit = Literal["colour", "shape", "size", "move", "swap", "drop", "add", "style", "background"]
EDITS: tuple[Edit, ...] = get_args(Edit)
EDIT_WEIGHTS = (0.15, 0.16, 0.07, 0.12, 0.13, 0.10, 0.10, 0.05, 0.12)
"""How often each of `EDITS` is drawn."""

Damage = Literal["noise", "blur", "fade", "smear", "patch"]
DAMAGES: tuple[Damage, ...] = get_args(Damage)


def another(rng: np.random.Generator, options: tuple[T, ...], current: T) -> T:
    rest = [o for o in options if o != current]
    return rest[int(rng.integers(len(rest)))]


def _somewhere(rng: np.random.Generator, size: int) -> tuple[int, int]:
    reach = (size + 1) // 2 + 1
    x, y = rng.integers(reach, CANVAS - reach + 1, 2)
    return int(x), int(y)


def _overlaps(a: Placed, others: tuple[Placed, ...]) -> bool:
    return any(gap(a, b) < MIN_GAP for b in others)


def _edited(scene: Scene, edit: Edit, rng: np.random.Generator) -> Scene | None:
    """The edited scene, or None if this edit is impossible."""
    objects = scene.objects
    if edit == "style":
        return replace(scene, style=another(rng, TRAIN_STYLES, scene.style))
    if edit == "background":
        return replace(scene, background=another(rng, BACKGROUNDS, scene.background))
    if edit == "add":
        size = REGULAR_SIZES[int(rng.integers(2))]
        new = Placed(COLOURS[int(rng.integers(6))], SHAPES[int(rng.integers(5))], size, *_somewhere(rng, size))
        return None if _overlaps(new, objects) or len(objects) > 4 else replace(scene, objects=(*objects, new))
    if not objects:
        return None
    i = int(rng.integers(len(objects)))
    chosen, rest = objects[i], objects[:i] + objects[i + 1 :]
    if edit == "drop":
        return replace(scene, objects=rest) if rest else None
    if edit == "swap":
        if not rest:
            return None
        j = int(rng.integers(len(rest)))
        other = rest[j]
        if (chosen.colour, chosen.shape) == (other.colour, other.shape) or chosen.size != other.size:
            return None
        moved = (replace(chosen, x=other.x, y=other.y), replace(other, x=chosen.x, y=chosen.y))
        return replace(scene, objects=(*rest[:j], *rest[j + 1 :], *moved))
    if edit == "colour":
        new = replace(chosen, colour=another(rng, COLOURS, chosen.colour))
    elif edit == "shape":
        new = replace(chosen, shape=another(rng, SHAPES, chosen.shape))
    elif edit == "size":
        new = replace(chosen, size=(REGULAR_SIZES if chosen.large else LARGE_SIZES)[int(rng.integers(2))])
        reach = (new.size + 1) // 2 + 1
        new = replace(new, x=min(max(new.x, reach), CANVAS - reach), y=min(max(new.y, reach), CANVAS - reach))
    else:
        x, y = _somewhere(rng, chosen.size)
        new = replace(chosen, x=x, y=y)
    if edit in ("size", "move") and _overlaps(new, rest):
        return None
    return replace(scene, objects=(*rest, new))


def edit_scene(
    scene: Scene, rng: np.random.Generator, edit: Edit | None = None, weights: Sequence[float] = EDIT_WEIGHTS
) -> Scene:
    """The scene with one change. The result may be shown in training (see `splits`).

    Args:
        weights: probability of each of `EDITS` if `edit` is None; they add up to 1.

    Raises:
        RuntimeError: no trainable result in 200 draws.
    """
    for _ in range(200):
        kind = edit or EDITS[int(rng.choice(len(EDITS), p=weights))]
        changed = _edited(scene, kind, rng)
        if changed is not None and scene_is_trainable(changed):
            return changed
    raise RuntimeError(f"cannot apply {edit or 'any edit'} to {scene}")


def damage(image: Image, kind: Damage, strength: float, rng: np.random.Generator) -> Image:
    """Damage the pixels of a picture.

    Args:
        kind: `noise` Gaussian pixel noise, `blur` Gaussian, `fade` towards the mean colour, `smear` a smooth
            warp, as in pictures of early generators, `patch` the background's colour in a random square.
        strength: 0 (unchanged) to 1 (hardly recognisable).
    """
    x: Any = image.astype(np.float32)
    if kind == "noise":
        x = x + rng.normal(0, 90 * strength, x.shape)
    elif kind == "blur":
        x = ndimage.gaussian_filter(x, (3.5 * strength, 3.5 * strength, 0))
    elif kind == "fade":
        x = x + 0.9 * strength * (x.mean((0, 1)) - x)
    elif kind == "smear":
        shift = [ndimage.gaussian_filter(rng.normal(0, 1, x.shape[:2]), 3) * 45 * strength for _ in range(2)]
        rows, columns = np.meshgrid(np.arange(x.shape[0]), np.arange(x.shape[1]), indexing="ij")
        where = [rows + shift[0], columns + shift[1]]
        x = np.stack([ndimage.map_coordinates(x[..., c], where, order=1, mode="nearest") for c in range(3)], -1)
    else:
        side = int(6 + 14 * strength)
        top, left = rng.integers(0, x.shape[0] - side, 2)
        x[top : top + side, left : left + side] = x[0, 0]
    return np.asarray(np.clip(x + 0.5, 0, 255), np.uint8)


def damage_randomly(image: Image, rng: np.random.Generator, most: float = 1.0) -> Image:
    """One random damage with a random strength up to `most`."""
    return damage(image, DAMAGES[int(rng.integers(len(DAMAGES)))], float(rng.random()) * most, rng)
