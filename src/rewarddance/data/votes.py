"""The record schema. Votes come first: who judged what, when, in which order, and how long it took. No torch here.

Preferences (choices, rankings, ratings) are derived from votes by `data.derive`. Agreement between annotators and
models of raters start from the votes themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from rewarddance.core.errors import InputError

VERSION = 2
"""Version of the record schema. 1: one criterion a row, with choices and no votes (`data.schema.migrate`)."""

VoteKind = Literal["choice", "rating", "ranking"]
MediaKind = Literal["image", "video", "none"]
"""`none`: the vote is about a system whose output the file does not hold (chat arenas)."""


@dataclass(frozen=True)
class Vote:
    """One judgement.

    Attributes:
        kind: what `values` are. `choice`: one value, the probability that the first of `media` is better (1, 0, or 0.5
            for a tie). `rating`: one rating a medium within `scale`, higher is better. `ranking`: one rank a medium,
            lower is better, equal ranks are ties.
        media: indices of the judged candidates of the record; a choice has two.
        criterion: what the judgement is about.
        annotator: who judged, None where the file does not say.
        created: when, ISO 8601 in UTC (see `iso_time`).
        seconds: how long the judgement took.
        shown: indices of the candidates from left to right (or top to bottom) as they were shown; empty if unknown.
        both_bad: a tie because both are bad.
        strength: how much better the preferred one is, from 0 (hardly) to 1 (much).
        scale: lowest and highest rating.
        weight: number of equal judgements that this one stands for, where the file gives counts.
        reason: the annotator's words; they call the first medium candidate and the second one reference.
    """

    kind: VoteKind
    media: tuple[int, ...]
    values: tuple[float, ...]
    criterion: str = "overall"
    annotator: str | None = None
    created: str | None = None
    seconds: float | None = None
    shown: tuple[int, ...] = ()
    both_bad: bool = False
    strength: float | None = None
    scale: tuple[float, float] | None = None
    weight: float = 1.0
    reason: str | None = None


@dataclass(frozen=True)
class MediaRef:
    """One picture or clip of a record.

    Attributes:
        sha256: of the file's bytes; None where the file is a link or missing.
        path: where the file was, as the source names it.
        model: the generator that made it.
        role: a `candidate` is judged; a `condition` is part of the request, such as the picture that is to be edited.
        frames: paths of frames, where the source gives a clip as pictures.
        settings: JSON of the generator's settings (seed, steps, guidance and so on), where they are known.
        data: the encoded file, where it is a picture.
    """

    kind: MediaKind = "image"
    path: str | None = None
    sha256: str | None = None
    model: str | None = None
    role: Literal["candidate", "condition"] = "candidate"
    frames: tuple[str, ...] = ()
    fps: float | None = None
    num_frames: int | None = None
    settings: str | None = None
    data: bytes | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class VotedRecord:
    """All candidates of one prompt, with every vote on them.

    Attributes:
        media: the candidates, then the conditions.
        truth: the exact value of every candidate, where it is known (the embedded world); never trained on.
        groups: the groups of the record, for example {"style": "flat"}; folds and splits are made of these.
    """

    record_id: str
    prompt: str
    media: tuple[MediaRef, ...]
    votes: tuple[Vote, ...] = ()
    source: str = ""
    truth: tuple[float, ...] | None = None
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def candidates(self) -> tuple[MediaRef, ...]:
        return tuple(m for m in self.media if m.role == "candidate")

    @property
    def conditions(self) -> tuple[MediaRef, ...]:
        return tuple(m for m in self.media if m.role == "condition")


def choice(label: float, first: int = 0, second: int = 1, **facts: Any) -> Vote:
    """A vote between two candidates; `label` is the probability that `first` is better."""
    return Vote("choice", (first, second), (label,), **facts)


def check_votes(record: VotedRecord) -> None:
    """Check a record's votes against its candidates.

    Raises:
        InputError: what is wrong with a vote.
    """
    num = len(record.candidates)
    if any(m.role == "candidate" for m in record.media[num:]):
        raise InputError("conditions must come after the candidates")
    for vote in record.votes:
        problem = _problem(vote, num)
        if problem:
            raise InputError(f"{vote.kind}: {problem}")


def _problem(vote: Vote, num: int) -> str | None:
    if any(not 0 <= i < num for i in (*vote.media, *vote.shown)):
        return f"names candidate {max((*vote.media, *vote.shown)) + 1} of {num}"
    if len(set(vote.media)) < len(vote.media):
        return "names one candidate twice"
    if not all(math.isfinite(v) for v in vote.values):
        return "a value is not a finite number"
    if not (math.isfinite(vote.weight) and vote.weight > 0):
        return f"weight {vote.weight} is not positive"
    if vote.strength is not None and not 0 <= vote.strength <= 1:
        return f"strength {vote.strength} is not between 0 and 1"
    if vote.kind == "choice":
        if len(vote.media) != 2 or len(vote.values) != 1:
            return "needs two candidates and one value"
        return None if 0 <= vote.values[0] <= 1 else f"label {vote.values[0]} is not between 0 and 1"
    if not vote.media or len(vote.values) != len(vote.media):
        return f"{len(vote.values)} values for {len(vote.media)} candidates"
    if vote.kind == "rating":
        if vote.scale is None or not vote.scale[0] < vote.scale[1]:
            return "needs a scale, lowest and highest"
        wrong = [v for v in vote.values if not vote.scale[0] <= v <= vote.scale[1]]
        return f"rating {wrong[0]:g} is not between {vote.scale[0]:g} and {vote.scale[1]:g}" if wrong else None
    return None


def iso_time(value: Any) -> str | None:
    """A time as ISO 8601 in UTC, from a `datetime`, seconds since 1970, or a text. Times without a zone count as UTC.

    Raises:
        InputError: not a time.

    >>> iso_time(0.5)
    '1970-01-01T00:00:00.500000+00:00'
    >>> iso_time("2024-05-01T12:00:00Z")
    '2024-05-01T12:00:00+00:00'
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, datetime):
            moment = value
        elif isinstance(value, int | float):
            moment = datetime.fromtimestamp(value, UTC)
        else:
            moment = datetime.fromisoformat(str(value).strip())
    except (ValueError, OverflowError, OSError):
        raise InputError(f"{str(value)[:40]!r} is not a time; use ISO 8601 or seconds since 1970") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
