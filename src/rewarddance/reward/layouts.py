"""Comparisons to dialogs, by layout: which of them show the same pictures, and in which places.

What is named first decides places: a reference stands before its candidate, a later comparison of the same two pictures
joins the places of the first one. Training shuffles its questions, so that places carry no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rewarddance.core.streams import stream
from rewarddance.reward.context import Context

if TYPE_CHECKING:
    from rewarddance.core.media import Dialog, Media
    from rewarddance.core.types import Comparison


def dialogs_of(context: Context, comparisons: Sequence[Comparison]) -> list[Dialog]:
    """One dialog a comparison, in order. Pointwise questions are the same in every layout."""
    if context.layout == "two_questions":
        return _two_questions(context, comparisons)
    if context.layout == "listwise":
        return _listwise(context, comparisons)
    return [context.render(c) for c in comparisons]


def _two_questions(context: Context, comparisons: Sequence[Comparison]) -> list[Dialog]:
    placed: set[tuple[str, str | None, int, int]] = set()
    found = []
    for c in comparisons:
        reverse = (c.prompt, c.criterion, id(c.reference), id(c.candidate))
        if c.reference is not None and reverse in placed:
            found.append(context.render_reversed(c))
            continue
        placed.add((c.prompt, c.criterion, id(c.candidate), id(c.reference)))
        found.append(context.render(c))
    return found


def _listwise(context: Context, comparisons: Sequence[Comparison]) -> list[Dialog]:
    """Comparisons of one prompt and criterion fill a context with their pictures until it is full."""
    lists: dict[tuple[str, str | None], _Lists] = {}
    chosen: list[list[Media] | None] = []
    for c in comparisons:
        if c.reference is None:
            chosen.append(None)
            continue
        known = lists.setdefault((c.prompt, c.criterion), _Lists(context.max_pictures))
        chosen.append(known.of((c.reference, c.candidate)))
    return [
        context.render(c) if pictures is None else context.render_listed(c, pictures)
        for c, pictures in zip(comparisons, chosen, strict=True)
    ]


@dataclass
class _Lists:
    """Pictures in lists of `most` at most; a pair joins the first list that lacks fewest of its pictures.

    Attributes:
        homes: of every picture (by identity) the lists that hold it; `open_homes` those of them with room.
    """

    most: int
    lists: list[list[Media]] = field(default_factory=list)
    homes: dict[int, set[int]] = field(default_factory=dict)
    open_homes: dict[int, list[int]] = field(default_factory=dict)
    roomy: int = 0
    """The first list that may have room for two more."""

    def of(self, pair: tuple[Media, Media]) -> list[Media]:
        a, b = (self.homes.get(id(m), set()) for m in pair)
        place = min(a & b, default=None)
        if place is None:
            place = min((h for m in pair for h in self._with_room(m)), default=None)
        if place is None:
            place = self._for_two()
        for media in pair:
            if place not in self.homes.setdefault(id(media), set()):
                self.lists[place].append(media)
                self.homes[id(media)].add(place)
                self.open_homes.setdefault(id(media), []).append(place)
        return self.lists[place]

    def _with_room(self, media: Media) -> list[int]:
        found = [h for h in self.open_homes.get(id(media), ()) if len(self.lists[h]) < self.most]
        self.open_homes[id(media)] = found  # a full list stays full
        return found

    def _for_two(self) -> int:
        while self.roomy < len(self.lists) and len(self.lists[self.roomy]) + 2 > self.most:
            self.roomy += 1
        if self.roomy == len(self.lists):
            self.lists.append([])
        return self.roomy


def orders(num: int, permutations: int) -> list[list[int]]:
    """Orders in which comparisons are put: as they come, backwards, then at random (the same ones every time)."""
    forward = list(range(num))
    more = (stream(0, "permutation", i).permutation(num).tolist() for i in range(2, permutations))
    return [forward, forward[::-1], *more][:permutations]
