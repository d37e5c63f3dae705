"""Lessons as packed sequences: the opening (prompt and pictures) once, then each turn as a branch.

A branch attends to the opening and to itself, but to no other turn. So an answer depends on the pictures alone: the
answer "nothing is missing" cannot reveal that the picture matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.data.parquet import RecordTable
from rewarddance.vlm.encoding import ChatEncoder, Frame
from rewarddance.vlm.plan import common_prefix
from rewarddance.world.lessons import Lesson, lesson, lesson_on, matching_lesson, relation_lesson, yes_or_no

WIDTH_STEP = 8
Stage = Literal["renders", "relations", "all"]
"""Which lessons are drawn: all kinds on renders, relations alone, or all kinds on renders and generated pictures."""


class LessonSource:
    """Lessons on renders, mixed with lessons on a generator's pictures from a preference file.

    Args:
        drawn: training preferences with the generator's pictures, or None for renders alone. The file is opened at its
            first use, so it need not exist when the training starts.
        share: share of lessons on such pictures. The real share is smaller, because uncertain pictures are skipped.
        matching: share of lessons on matching alone.
        relations: share of lessons on relations alone.
        requests: share of lessons that begin with a request for yes or no and ask only such questions.
    """

    def __init__(
        self, drawn: Path | None, share: float, matching: float = 0.0, relations: float = 0.0, requests: float = 0.0
    ) -> None:
        self.drawn, self.share, self.matching, self.relations = drawn, share, matching, relations
        self.requests = requests
        self._table: RecordTable | None = None

    def draw(self, rng: np.random.Generator, num_questions: int, stage: Stage = "all") -> Lesson:
        """One lesson, a pure function of the random stream."""
        lesson = self._draw(rng, num_questions, stage)
        return yes_or_no(lesson) if self.requests and rng.random() < self.requests else lesson

    def _draw(self, rng: np.random.Generator, num_questions: int, stage: Stage) -> Lesson:
        if stage == "relations":
            return relation_lesson(rng)
        chance = rng.random()
        if chance < self.matching:
            return matching_lesson(rng)
        if chance < self.matching + self.relations:
            return relation_lesson(rng)
        if self.drawn is not None and stage == "all" and rng.random() < self.share:
            record = self._records[int(rng.integers(len(self._records)))]
            on_pictures = lesson_on(record.prompt, [m.to_numpy() for m in record.media], rng, num_questions)
            if on_pictures is not None:
                return on_pictures
        return lesson(rng, num_questions)

    @property
    def _records(self) -> RecordTable:
        if self._table is None:
            assert self.drawn is not None
            table = RecordTable.open(self.drawn)
            self._table = table.take([i for i, s in enumerate(table.sources) if s == "generator"])
            if len(self._table) == 0:
                raise InputError(f"{self.drawn}: no pictures by a generator; build it with one, or train without it")
        return self._table


@dataclass(frozen=True)
class PackedLesson:
    """One lesson of S tokens.

    Attributes:
        ids: token ids.
        images: pictures in the order of their runs of context tokens.
        branch: 0 in the opening, 1, 2, ... in the turns.
        positions: index of each token in its own dialog.
        weights: weight of the loss at each token; 0 outside answers.
    """

    ids: tuple[int, ...]
    images: tuple[Frame, ...]
    branch: tuple[int, ...]
    positions: tuple[int, ...]
    weights: tuple[float, ...]


def pack(lesson: Lesson, encoder: ChatEncoder, verdict_weight: float) -> PackedLesson:
    """Encode each turn as a whole dialog, and keep the tokens that all dialogs begin with once.

    Args:
        verdict_weight: weight of one-word answers; words of longer answers and end tokens weigh 1.
    """
    opening: list[str | Media] = [f"{lesson.request}\n"] if lesson.request else []
    opening += [f"prompt: {lesson.prompt}\n"] if lesson.prompt else []
    for i, image in enumerate(lesson.images):
        opening += [f"image {i + 1}: ", Media.from_numpy(image), "\n"]
    turns = [
        encoder.chat([("user", [*opening, question]), ("assistant", [answer])], generate=False)
        for question, answer in lesson.turns
    ]
    shared = min(min(common_prefix(turns[0].ids, t.ids), t.answers.index(True)) for t in turns)
    ids, branch = list(turns[0].ids[:shared]), [0] * shared
    positions, weights = list(range(shared)), [0.0] * shared
    for k, turn in enumerate(turns, 1):
        branch_ids, answers = turn.ids[shared:], turn.answers[shared:]
        first = answers.index(True)
        ids += branch_ids
        branch += [k] * len(branch_ids)
        positions += range(shared, shared + len(branch_ids))
        weights += [verdict_weight if i == first and sum(answers) == 2 else float(a) for i, a in enumerate(answers)]
    return PackedLesson(tuple(ids), turns[0].images, tuple(branch), tuple(positions), tuple(weights))


@dataclass(frozen=True)
class PackedBatch:
    """(B, S) tensors, right-padded; `mask` is (B, 1, S, S), True where a query attends."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    weights: Tensor
    frames: list[Frame]


def collate(batch: Sequence[PackedLesson], pad: int) -> PackedBatch:
    """Pad to a multiple of `WIDTH_STEP` and build the tree's attention mask."""
    width = -(-max(len(p.ids) for p in batch) // WIDTH_STEP) * WIDTH_STEP

    def table(rows: list[tuple[int, ...]] | list[tuple[float, ...]], fill: float) -> Tensor:
        return torch.tensor([[*r, *[fill] * (width - len(r))] for r in rows])

    branch = table([p.branch for p in batch], -1).long()
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    visible = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    mask = (visible & causal) | torch.eye(width, dtype=torch.bool)
    return PackedBatch(
        table([p.ids for p in batch], pad).long(),
        table([p.positions for p in batch], 0).long(),
        mask[:, None],
        table([p.weights for p in batch], 0.0).float(),
        [f for p in batch for f in p.images],
    )
