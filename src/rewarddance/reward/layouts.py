"""Comparisons to dialogs, by layout: which of them show the same pictures, and in which places.

What is named first decides places: a reference stands before its candidate, a later comparison of the same two pictures
joins the places of the first one. Training shuffles its questions, so that places carry no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    lists: dict[tuple[str, str | None], list[list[Media]]] = {}
    chosen: list[list[Media] | None] = []
    for c in comparisons:
        if c.reference is None:
            chosen.append(None)
            continue
        known = lists.setdefault((c.prompt, c.criterion), [[]])
        chosen.append(_place(known, (c.reference, c.candidate), context.max_pictures))
    return [
        context.render(c) if pictures is None else context.render_listed(c, pictures)
        for c, pictures in zip(comparisons, chosen, strict=True)
    ]


def _place(lists: list[list[Media]], pair: Sequence[Media], most: int) -> list[Media]:
    """A list that holds both pictures, or room for them; a new one where there is none."""

    def missing(pictures: list[Media]) -> list[Media]:
        return [x for x in pair if not any(x is m for m in pictures)]

    for pictures in sorted(lists, key=lambda known: len(missing(known))):
        if len(pictures) + len(missing(pictures)) <= most:
            pictures += missing(pictures)
            return pictures
    lists.append(list(pair))
    return lists[-1]


def orders(num: int, permutations: int) -> list[list[int]]:
    """Orders in which comparisons are put: as they come, backwards, then at random (the same ones every time)."""
    forward = list(range(num))
    more = (stream(0, "permutation", i).permutation(num).tolist() for i in range(2, permutations))
    return [forward, forward[::-1], *more][:permutations]
