"""A dialog as a sequence of units (tokens and whole pictures). Equal first units show that dialogs begin alike."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from rewarddance.vlm.encoding import Encoded
from rewarddance.vlm.layout import Ints
from rewarddance.vlm.plan import Key
from rewarddance.vlm.vision_pass import DistinctFrames


@dataclass(frozen=True)
class Sequenced:
    """A dialog as a token sequence.

    Attributes:
        key: its units, with -1 - number in place of every image. Dialogs that begin alike have keys that begin alike.
            The number is the image's index, plus the number of all images times its shift: equal frames at another time
            have other positions, so they are not the same unit.
        offsets: tokens before every unit.
        start: the first token whose state is wanted; all later ones are too.
    """

    key: Key
    offsets: tuple[int, ...]
    encoded: Encoded
    start: int

    def tokens(self, first_row: Ints) -> Ints:
        """Token ids, with -1 - row in place of every image token, (S,).

        Args:
            first_row: for every image the row of its first token in the table of image tokens, and their sum.
        """
        units, offsets = np.array(self.key), np.array(self.offsets)
        widths = np.diff(offsets)
        index = np.maximum(-1 - units, 0) % max(1, len(first_row) - 1)
        values = np.where(units < 0, -1 - first_row[index], units)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], widths)
        return np.repeat(values, widths) - np.where(np.repeat(units, widths) < 0, within, 0)


def sequenced(encoded: Encoded, image_tokens: frozenset[int], distinct: DistinctFrames, stop: int) -> Sequenced:
    """A dialog whose states are wanted from token `stop` - 1 on."""
    units, widths = list(encoded.units), [1] * len(encoded.units)
    places = (place for place, token in enumerate(encoded.units) if token in image_tokens)
    images = zip(encoded.images, encoded.counts, encoded.shifts, places, strict=True)
    for (media, frames), count, shift, place in images:
        number = distinct.index_of[id(media), frames] + len(distinct.frames) * shift
        units[place], widths[place] = -1 - number, count
    return Sequenced(tuple(units), tuple(itertools.accumulate(widths, initial=0)), encoded, stop - 1)
