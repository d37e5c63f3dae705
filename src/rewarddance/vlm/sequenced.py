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
        key: its units, with -1 - index in place of every picture. Dialogs that begin alike have keys that begin alike.
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
            first_row: for every picture the row of its first token in the table of image tokens.
        """
        units, offsets = np.array(self.key), np.array(self.offsets)
        widths = np.diff(offsets)
        values = np.where(units < 0, -1 - first_row[np.maximum(-1 - units, 0)], units)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], widths)
        return np.repeat(values, widths) - np.where(np.repeat(units, widths) < 0, within, 0)


def sequenced(encoded: Encoded, image_token: int, distinct: DistinctFrames, stop: int) -> Sequenced:
    """A dialog whose states are wanted from token `stop` - 1 on."""
    units, widths = list(encoded.units), [1] * len(encoded.units)
    place = -1
    for (media, i), count in zip(encoded.images, encoded.counts, strict=True):
        place = units.index(image_token, place + 1)
        units[place], widths[place] = -1 - distinct.index_of[id(media), i], count
    return Sequenced(tuple(units), tuple(itertools.accumulate(widths, initial=0)), encoded, stop - 1)
