"""Preferences derived from votes: choices with ties and strength, rankings, ratings. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from rewarddance.core.preferences import Choice
from rewarddance.core.types import swap_roles
from rewarddance.data.votes import Vote, VotedRecord

LOWEST, HIGHEST = 1.0, 5.0
"""The range of `PreferenceRecord.ratings`; other scales are mapped to it linearly."""
LIKERT = ("fidelity", "style", "composition", "novelty")
"""The four criteria that people rate from 1 to 5 (METHOD, section 5)."""


@dataclass(frozen=True)
class Preference:
    """The result of the votes of one criterion.

    Attributes:
        choices: one for each judged pair. Its label is the weighted share of judgements for its first candidate.
        ratings: mean rating of every candidate from 1 to 5; None if a candidate has no rating.
    """

    criterion: str
    choices: tuple[Choice, ...]
    ratings: tuple[float, ...] | None = None


def preferences(record: VotedRecord) -> tuple[Preference, ...]:
    """One `Preference` for each criterion, in the order in which the criteria first occur in the votes.

    Choices and rankings count before ratings: a rating decides pairs only where its criterion has no other vote.
    """
    num = len(record.candidates)
    made = []
    for criterion in dict.fromkeys(v.criterion for v in record.votes):
        votes = [v for v in record.votes if v.criterion == criterion]
        made.append(Preference(criterion, choices(votes), mean_ratings(votes, num)))
    return tuple(made)


@dataclass
class _Pair:
    """Judgements on one pair, as seen from its first candidate."""

    first: int
    second: int
    weight: float = 0.0
    won: float = 0.0
    strengths: list[float] = field(default_factory=list)
    reasons: list[tuple[float, str]] = field(default_factory=list)

    def add(self, vote: Vote) -> None:
        swapped = vote.media[0] != self.first
        label = 1 - vote.values[0] if swapped else vote.values[0]
        self.weight += vote.weight
        self.won += vote.weight * label
        if vote.strength is not None:
            self.strengths.append(vote.strength)
        if vote.reason:
            self.reasons.append((label, swap_roles(vote.reason) if swapped else vote.reason))

    def choice(self) -> Choice:
        label = self.won / self.weight
        reason = next((text for side, text in self.reasons if (side - 0.5) * (label - 0.5) > 0), None)
        strength = sum(self.strengths) / len(self.strengths) if self.strengths else None
        return Choice(self.first, self.second, label, reason, strength)


def choices(votes: Sequence[Vote]) -> tuple[Choice, ...]:
    """The choices that follow from votes of one criterion, one for each pair, in the order of the first votes."""
    direct = [v for v in votes if v.kind != "rating"]
    pairs: dict[tuple[int, int], _Pair] = {}
    for vote in direct or merged_ratings(votes):
        for single in pairwise(vote):
            a, b = single.media
            pairs.setdefault((min(a, b), max(a, b)), _Pair(a, b)).add(single)
    return tuple(p.choice() for p in pairs.values())


def pairwise(vote: Vote) -> list[Vote]:
    """A vote as choices between two candidates. A ranking or rating of K gives K (K - 1) / 2; equal values are ties."""
    if vote.kind == "choice":
        return [vote]
    sign = 1 if vote.kind == "ranking" else -1
    made = []
    for (i, a), (j, b) in combinations(zip(vote.media, vote.values, strict=True), 2):
        label = 0.5 if a == b else float(sign * a < sign * b)
        made.append(replace(vote, kind="choice", media=(i, j), values=(label,), scale=None, reason=None))
    return made


def whole_ratings(votes: Sequence[Vote]) -> list[Vote]:
    """The votes, with ratings of single candidates merged by annotator and criterion, and moved to the end."""
    owners = {(v.annotator, v.criterion) for v in votes if v.kind == "rating" and len(v.media) == 1}

    def in_parts(vote: Vote) -> bool:
        return vote.kind == "rating" and (vote.annotator, vote.criterion) in owners

    return [v for v in votes if not in_parts(v)] + merged_ratings([v for v in votes if in_parts(v)])


def merged_ratings(votes: Sequence[Vote]) -> list[Vote]:
    """One vote from 1 to 5 for each annotator and criterion, because a file may have a row for each candidate's rating.

    Several ratings of one candidate become their mean. The other facts (time, duration, order, strength) are kept where
    all merged votes agree on them.
    """
    grouped: dict[tuple[str | None, str], list[Vote]] = {}
    for vote in votes:
        if vote.kind == "rating":
            grouped.setdefault((vote.annotator, vote.criterion), []).append(vote)
    return [_merged(own) for own in grouped.values()]


def _merged(votes: Sequence[Vote]) -> Vote:
    given: dict[int, list[float]] = {}
    for vote in votes:
        for index, value in zip(vote.media, scaled(vote), strict=True):
            given.setdefault(index, []).append(value)
    media = tuple(sorted(given))
    values = tuple(sum(given[i]) / len(given[i]) for i in media)
    facts = {name: {getattr(v, name) for v in votes} for name in ("created", "seconds", "shown", "strength")}
    agreed: dict[str, Any] = {name: next(iter(own)) for name, own in facts.items() if len(own) == 1}
    return Vote("rating", media, values, votes[0].criterion, votes[0].annotator, scale=(LOWEST, HIGHEST), **agreed)


def scaled(vote: Vote) -> tuple[float, ...]:
    """The values of a rating, mapped from its scale to 1..5."""
    low, high = vote.scale or (LOWEST, HIGHEST)
    if (low, high) == (LOWEST, HIGHEST):
        return vote.values
    return tuple(LOWEST + (HIGHEST - LOWEST) * (v - low) / (high - low) for v in vote.values)


def mean_ratings(votes: Sequence[Vote], num: int) -> tuple[float, ...] | None:
    """Weighted mean rating of every candidate, 1 to 5; None if one of `num` candidates has no rating."""
    sums, weights = [0.0] * num, [0.0] * num
    for vote in votes:
        if vote.kind == "rating":
            for index, value in zip(vote.media, scaled(vote), strict=True):
                sums[index] += vote.weight * value
                weights[index] += vote.weight
    if not num or not all(weights):
        return None
    return tuple(s / w for s, w in zip(sums, weights, strict=True))


def likert(record: VotedRecord, criteria: Sequence[str] = LIKERT) -> dict[str, tuple[float, ...]]:
    """Mean rating of every candidate by criterion, 1 to 5, for the criteria by which all candidates are rated."""
    num = len(record.candidates)
    by_name = {c: mean_ratings([v for v in record.votes if v.criterion == c], num) for c in criteria}
    return {name: ratings for name, ratings in by_name.items() if ratings is not None}


def mean_ranks(record: VotedRecord, criterion: str = "overall") -> tuple[float, ...] | None:
    """Mean rank of every candidate over the rankings of all of them, 1 is best and ties share ranks; None without."""
    num = len(record.candidates)
    full = [v for v in record.votes if v.kind == "ranking" and v.criterion == criterion and len(v.media) == num]
    if not full:
        return None
    total = sum(v.weight for v in full)
    sums = [0.0] * num
    for vote in full:
        for index, own in zip(vote.media, vote.values, strict=True):
            better = sum(other < own for other in vote.values)
            equal = sum(other == own for other in vote.values)
            sums[index] += vote.weight * (better + (equal + 1) / 2)
    return tuple(s / total for s in sums)
