"""The lessons of a VLM's training steps: where they come from, and in what batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rewarddance.core.errors import InputError
from rewarddance.core.streams import stream
from rewarddance.data.parquet import RecordTable
from rewarddance.world.build.packing import LessonPacker, PackedBatch, collate
from rewarddance.world.lessons import Lesson, lesson, lesson_on, matching_lesson, relation_lesson, yes_or_no
from rewarddance.world.motion.lessons import action_lesson, clip_lesson, prompts_lesson

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
        clips: share of lessons on clips; the other shares are those of the remaining lessons.
        actions: share of the lessons on clips that are about actions alone.
        prompts: share of the lessons on clips that ask which of several prompts a clip matches.
    """

    def __init__(
        self,
        drawn: Path | None,
        share: float,
        matching: float = 0.0,
        relations: float = 0.0,
        requests: float = 0.0,
        clips: float = 0.0,
        actions: float = 0.0,
        prompts: float = 0.0,
    ) -> None:
        self.drawn, self.share, self.matching, self.relations = drawn, share, matching, relations
        self.requests, self.clips, self.actions, self.prompts = requests, clips, actions, prompts
        self._table: RecordTable | None = None

    def draw(self, rng: np.random.Generator, num_questions: int, stage: Stage = "all") -> Lesson:
        """One lesson, a pure function of the random stream."""
        lesson = self._draw(rng, num_questions, stage)
        asked = lesson.request is None and self.requests and rng.random() < self.requests
        return yes_or_no(lesson) if asked else lesson

    def _draw(self, rng: np.random.Generator, num_questions: int, stage: Stage) -> Lesson:
        if stage == "relations":
            return relation_lesson(rng)
        if self.clips and rng.random() < self.clips:
            kind = rng.random()
            if kind < self.actions:
                return action_lesson(rng)
            return prompts_lesson(rng) if kind < self.actions + self.prompts else clip_lesson(rng, num_questions)
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
class Stages:
    """Which lessons a step has: relations alone in steps [start, stop), generated pictures from `drawn_from` on."""

    drawn_from: float
    relations: tuple[float, float] = (0.0, 0.0)

    def of(self, index: int) -> Stage:
        if self.relations[0] <= index < self.relations[1]:
            return "relations"
        return "all" if index >= self.drawn_from else "renders"


@dataclass(frozen=True)
class LessonBatches:
    """The lessons of a step: calling it with the step's index gives batches of similar length, for one pass each.

    A pure function of the index. It can be pickled for worker processes.

    Args:
        name: of the random stream.
        num: lessons of this process.
        per_pass: largest number of lessons in one pass.
        pad: token id of the padding.
        world, rank: number of processes, and this one's.
        stages: the kind of lessons by step.
    """

    source: LessonSource
    packer: LessonPacker
    name: str
    seed: int
    num: int
    num_questions: int
    per_pass: int
    pad: int
    stages: Stages
    world: int = 1
    rank: int = 0

    def __call__(self, index: int) -> list[PackedBatch]:
        rng, stage = stream(self.seed, self.name, index * self.world + self.rank), self.stages.of(index)
        lessons = [self.source.draw(rng, self.num_questions, stage) for _ in range(self.num)]
        packed = sorted(map(self.packer, lessons), key=lambda p: len(p.ids))
        return [collate(packed[i : i + self.per_pass], self.pad) for i in range(0, self.num, self.per_pass)]
