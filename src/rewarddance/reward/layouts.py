"""Turns comparisons into dialogs. The layout decides which dialogs show the same pictures, and in which positions.

Positions follow from the order of the comparisons: a reference stands before its candidate, and a later comparison of
the same two pictures keeps the positions of the first one. Training shuffles its questions, so that positions mean
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rewarddance.core.media import Dialog, DialogPart, Media, Reply
from rewarddance.core.streams import stream
from rewarddance.core.types import Comparison
from rewarddance.reward.context import Context


def dialogs_of(context: Context, comparisons: Sequence[Comparison], prefix: Dialog = ()) -> list[Dialog]:
    """One dialog a comparison, in order. Pointwise questions are the same in every layout.

    Args:
        prefix: what all dialogs begin with (`example_turns`).
    """
    if context.layout == "two_questions":
        dialogs = _two_questions(context, comparisons)
    elif context.layout == "listwise":
        dialogs = _listwise(context, comparisons)
    else:
        dialogs = [context.render(c) for c in comparisons]
    return [(*prefix, *d) for d in dialogs] if prefix else dialogs


def example_turns(context: Context, examples: Sequence[Comparison]) -> Dialog:
    """Labelled comparisons as turns: each question, then the right answer, and with chain of thought its reason."""
    parts: list[DialogPart] = []
    for example in examples:
        before, word, after = context.answer((example.label or 0.0) > 0.5, example.rationale or "", example.candidate)
        full = before + word + after if context.cot != "none" and example.rationale else word.strip()
        parts += [*context.render(example), Reply(full)]
    return tuple(parts)


def _two_questions(context: Context, comparisons: Sequence[Comparison]) -> list[Dialog]:
    placed: set[tuple[str, str | None, int, int]] = set()
    dialogs = []
    for c in comparisons:
        reverse = (c.prompt, c.criterion, id(c.reference), id(c.candidate))
        if c.reference is not None and reverse in placed:
            dialogs.append(context.render_reversed(c))
            continue
        placed.add((c.prompt, c.criterion, id(c.candidate), id(c.reference)))
        dialogs.append(context.render(c))
    return dialogs


def _listwise(context: Context, comparisons: Sequence[Comparison]) -> list[Dialog]:
    """Comparisons of one prompt and criterion share a list of pictures until the list is full."""
    groups: dict[tuple[str, str | None], _PictureLists] = {}
    chosen: list[list[Media] | None] = []
    for c in comparisons:
        if c.reference is None:
            chosen.append(None)
            continue
        lists = groups.setdefault((c.prompt, c.criterion), _PictureLists(context.max_pictures))
        chosen.append(lists.with_pair((c.reference, c.candidate)))
    return [
        context.render(c) if pictures is None else context.render_listed(c, pictures)
        for c, pictures in zip(comparisons, chosen, strict=True)
    ]


@dataclass
class _PictureLists:
    """Lists of at most `max_pictures` pictures. A pair joins the first list that needs the fewest additions.

    Attributes:
        member_of: for every picture (by identity) the lists that hold it; `open_lists`: those of them with room.
        first_with_room: the first list that may have room for two more pictures.
    """

    max_pictures: int
    lists: list[list[Media]] = field(default_factory=list)
    member_of: dict[int, set[int]] = field(default_factory=dict)
    open_lists: dict[int, list[int]] = field(default_factory=dict)
    first_with_room: int = 0

    def with_pair(self, pair: tuple[Media, Media]) -> list[Media]:
        a, b = (self.member_of.get(id(m), set()) for m in pair)
        index = min(a & b, default=None)
        if index is None:
            index = min((i for m in pair for i in self._with_room(m)), default=None)
        if index is None:
            index = self._for_two()
        for media in pair:
            if index not in self.member_of.setdefault(id(media), set()):
                self.lists[index].append(media)
                self.member_of[id(media)].add(index)
                self.open_lists.setdefault(id(media), []).append(index)
        return self.lists[index]

    def _with_room(self, media: Media) -> list[int]:
        lists = [i for i in self.open_lists.get(id(media), ()) if len(self.lists[i]) < self.max_pictures]
        self.open_lists[id(media)] = lists  # a full list stays full
        return lists

    def _for_two(self) -> int:
        while self.first_with_room < len(self.lists) and len(self.lists[self.first_with_room]) + 2 > self.max_pictures:
            self.first_with_room += 1
        if self.first_with_room == len(self.lists):
            self.lists.append([])
        return self.first_with_room


def orders(num: int, permutations: int) -> list[list[int]]:
    """Orders in which comparisons are asked: forward, backward, then random ones (the same every time)."""
    forward = list(range(num))
    more = (stream(0, "permutation", i).permutation(num).tolist() for i in range(2, permutations))
    return [forward, forward[::-1], *more][:permutations]
