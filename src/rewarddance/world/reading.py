"""The scene of a picture, read from pixels where it is certain: captions for a generator's pictures."""

from __future__ import annotations

from collections import Counter

from rewarddance.world.detect import Detection, detect
from rewarddance.world.render import Image
from rewarddance.world.scene import Placed, Scene
from rewarddance.world.splits import OOD_COUNT, OOD_KINDS, OOD_STYLE, scene_is_trainable

CLEAR = 0.6
"""Least colour share and least overlap with the best shape for an object to be named."""
MAX_SPECKS = 30
MAX_BACKGROUND_DISTANCE = 60.0


def _is_clear(detection: Detection) -> bool:
    return float(detection.colour_share.max()) >= CLEAR and float(detection.shape_fit.max()) >= CLEAR


def read_scene(image: Image) -> Scene | None:
    """The scene that a picture shows, or None where an object, the style or the background is uncertain.

    Args:
        image: uint8 (CANVAS, CANVAS, 3).
    """
    seen = detect(image)
    styles = {o.style for o in seen.objects}
    uncertain = seen.specks > MAX_SPECKS or seen.background_distance > MAX_BACKGROUND_DISTANCE
    if len(styles) != 1 or uncertain or not all(map(_is_clear, seen.objects)):
        return None
    objects = (Placed(o.colour, o.shape, round(o.size), round(o.x), round(o.y)) for o in seen.objects)  # type: ignore[arg-type]
    return Scene(tuple(objects), styles.pop(), seen.background)  # type: ignore[arg-type]


def shows_held_out(image: Image) -> bool:
    """Does a generator's picture show held-out content, even by mistake?

    This is a kind, a style or a count that is held out, or a scene whose plain listing is. Uncertain objects do not
    count.
    """
    clear = [o for o in detect(image).objects if _is_clear(o)]
    counts = Counter((o.colour, o.shape) for o in clear)
    if counts.keys() & OOD_KINDS or OOD_COUNT in counts.values() or any(o.style == OOD_STYLE for o in clear):
        return True
    scene = read_scene(image)
    return scene is not None and not scene_is_trainable(scene)
