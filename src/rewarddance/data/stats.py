"""`data stats`: labels, agreement, side bias, duplicates, contradictions and leakage of a data folder."""

from __future__ import annotations

import io
from array import array
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from rewarddance.core.media import Media
from rewarddance.core.progress import progress
from rewarddance.core.statistics import share
from rewarddance.data.agreement import elo_ratings, krippendorff
from rewarddance.data.derive import pairwise, scaled
from rewarddance.data.folder import check_manifest, counts, splits_of
from rewarddance.data.parquet import count_rows, stored_rows, voted_records
from rewarddance.data.text import key_of, normalised
from rewarddance.data.votes import MediaRef, Vote, VotedRecord

MAX_ANNOTATORS = 20
"""Annotators that are listed, those with most votes first."""


@dataclass
class Person:
    """The votes of one annotator."""

    votes: int = 0
    ties: int = 0
    seconds: array[float] = field(default_factory=lambda: array("d"))

    def add(self, vote: Vote) -> None:
        self.votes += 1
        self.ties += vote.kind == "choice" and vote.values[0] == 0.5
        if vote.seconds is not None:
            self.seconds.append(vote.seconds)


@dataclass
class Judged:
    """The counts that `stats` collects from the votes of a split.

    Attributes:
        pairs: by criterion, then by `key_of` a prompt and two media, whatever the record: the label of each voter.
    """

    pairs: dict[str, dict[bytes, dict[str, float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    ratings: dict[str, dict[tuple[str, str], dict[str, float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    labels: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)
    repeats: Counter[str] = field(default_factory=Counter)
    wins: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    people: dict[str, Person] = field(default_factory=lambda: defaultdict(Person))
    _names: dict[str, str] = field(default_factory=dict)
    _anonymous: int = 0

    def add(self, record: VotedRecord) -> None:
        prompt = normalised(record.prompt)
        names = [_name(m, record) for m in record.candidates]
        for vote in record.votes:
            if vote.annotator is not None:
                self.people[vote.annotator].add(vote)
            if vote.kind == "rating":
                for i, value in zip(vote.media, scaled(vote), strict=True):
                    self.ratings[vote.criterion][prompt, names[i]][self._who(vote)] = value
                continue
            for single in pairwise(vote):
                self._add_pair(single, prompt, [names[i] for i in single.media], record)
            if vote.kind == "choice":
                self._count(vote)

    def _who(self, vote: Vote) -> str:
        """The annotator's name. A vote without an annotator gets a name of its own."""
        self._anonymous += vote.annotator is None
        if not vote.annotator:
            return f"\x00{self._anonymous}"
        return self._names.setdefault(vote.annotator, vote.annotator)  # one string for all votes of a person

    def _add_pair(self, vote: Vote, prompt: str, names: list[str], record: VotedRecord) -> None:
        label = vote.values[0]
        a, b = names
        models = [record.candidates[i].model for i in vote.media]
        if models[0] and models[1]:
            self.wins[models[0], models[1]] += vote.weight * label
            self.wins[models[1], models[0]] += vote.weight * (1 - label)
        if label not in (0, 0.5, 1):
            return  # a mean of several people says nothing about their agreement
        value = label if a < b else 1 - label
        unit = self.pairs[vote.criterion][key_of(prompt, min(a, b), max(a, b))]
        for _ in range(round(vote.weight) if vote.annotator is None else 1):
            who = self._who(vote)
            if who in unit:
                self.repeats["equal" if unit[who] == value else "other"] += 1
            unit[who] = value

    def _count(self, vote: Vote) -> None:
        label = vote.values[0]
        word = {1.0: "first", 0.0: "second", 0.5: "both bad" if vote.both_bad else "tie"}.get(label, "soft")
        self.labels[word] += 1
        if len(vote.shown) == 2 and label != 0.5:
            better = vote.media[0] if label > 0.5 else vote.media[1]
            self.sides["left" if vote.shown[0] == better else "right"] += 1


def _name(ref: MediaRef, record: VotedRecord) -> str:
    """The name of a medium: its content, the path of a clip, or the system in this record."""
    return ref.sha256 or ref.path or f"{record.record_id}/{ref.model}"


def summary(judged: Judged) -> dict[str, Any]:
    """The figures of `Judged`."""
    decided = judged.labels["first"] + judged.labels["second"]
    sides = judged.sides
    units = [votes for criterion in judged.pairs.values() for votes in criterion.values()]
    return {
        "labels": dict(judged.labels),
        "first_preferred": share(judged.labels["first"], decided),
        "shown_first_preferred": share(sides["left"], sides["left"] + sides["right"]),
        "agreement_on_choices": {
            c: asdict(krippendorff([list(v.values()) for v in pairs.values()]))
            for c, pairs in sorted(judged.pairs.items())
        },
        "agreement_on_ratings": {
            c: asdict(krippendorff([list(v.values()) for v in media.values()], "interval"))
            for c, media in sorted(judged.ratings.items())
        },
        "contradictions": sum({0.0, 1.0} <= set(votes.values()) for votes in units),
        "judged_pairs": len(units),
        "repeated_by_one_annotator": share(judged.repeats["equal"], sum(judged.repeats.values())),
        "annotators": _people(judged, units),
        "systems": elo_ratings(judged.wins) if judged.wins else {},
    }


def _people(judged: Judged, units: list[dict[str, float]]) -> dict[str, Any]:
    """Votes, ties, side and speed of the most active annotators, and how often they agree with another one."""
    agreements: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for votes in units:
        named = [(who, label) for who, label in votes.items() if not who.startswith("\x00")]
        for (a, x), (b, y) in combinations(named, 2):
            for who in (a, b):
                agreements[who][0] += x == y
                agreements[who][1] += 1
    listed = sorted(judged.people, key=lambda name: -judged.people[name].votes)[:MAX_ANNOTATORS]
    table: dict[str, Any] = {}
    for name in listed:
        person = judged.people[name]
        table[name] = {
            "votes": person.votes,
            "ties": person.ties,
            "median_seconds": median(person.seconds) if person.seconds else None,
            "agrees_with_others": share(*agreements[name]),
        }
    return table


@dataclass
class Looked:
    """The pictures and prompts of a split, by record."""

    prompts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    exact: set[bytes] = field(default_factory=set)
    pixels: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    twins: int = 0
    num: int = 0

    def add(self, record: VotedRecord, keys: dict[str, str]) -> None:
        self.prompts[normalised(record.prompt)].append(self.num)
        self.exact.add(key_of(record.prompt))
        candidate_keys = []
        for ref in record.candidates:
            if ref.sha256 is None:
                continue
            key = keys.get(ref.sha256) or _pixels(ref)
            keys[ref.sha256] = key
            candidate_keys.append(key)
            self.pixels[key].append(self.num)
            self.files[key].add(ref.sha256)
        self.twins += len(set(candidate_keys)) < len(candidate_keys)
        self.num += 1

    def as_dict(self) -> dict[str, Any]:
        several = [rows for rows in self.pixels.values() if len(set(rows)) > 1]
        return {
            "pictures": len(self.pixels),
            "pictures_in_several_records": len(several),
            "pictures_stored_as_several_files": sum(len(f) > 1 for f in self.files.values()),
            "records_with_equal_candidates": self.twins,
            "prompts": len(self.exact),
            "prompts_that_differ_in_case_or_punctuation_alone": len(self.exact) - len(self.prompts),
        }


def _pixels(ref: MediaRef) -> str:
    """Equal for pictures with equal pixels; a clip counts by its file."""
    if ref.kind != "image" or ref.data is None:
        return ref.sha256 or ""
    return Media.open_picture(io.BytesIO(ref.data), origin=ref.path).key


def leakage(kept: Looked, held_out: Looked) -> dict[str, Any]:
    """The prompts and pictures that two splits share, and how many records of the second split have them."""
    prompts = kept.prompts.keys() & held_out.prompts.keys()
    pixels = kept.pixels.keys() & held_out.pixels.keys()
    rows = {i for p in prompts for i in held_out.prompts[p]} | {i for k in pixels for i in held_out.pixels[k]}
    return {
        "shared_prompts": len(prompts),
        "shared_pictures": len(pixels),
        "records_concerned": len(rows),
        "records": held_out.num,
        "examples": sorted(prompts)[:3],
    }


def data_stats(data: Path, pixels: bool = True) -> dict[str, Any]:
    """Figures of every split of a data folder (or of one file), and leakage between them.

    `unlike_manifest` lists the files whose contents differ from the folder's manifest.

    Args:
        pixels: also open every picture, which finds equal pictures in different files; otherwise pictures are compared
            by their files.

    Raises:
        InputError: no data there.
    """
    report: dict[str, Any] = {"splits": {}, "leakage": {}}
    seen: dict[str, Looked] = {}
    keys: dict[str, str] = {}
    for name, path in splits_of(data).items():
        judged, looked = Judged(), Looked()
        total = count_rows(path)
        with progress(name) as bar:
            for done, record in enumerate(voted_records(path, pictures=pixels), 1):
                judged.add(record)
                looked.add(record, keys)
                bar(done, total)
        derived = counts(stored_rows(path, pictures=False))
        report["splits"][name] = derived | summary(judged) | {"duplicates": looked.as_dict()}
        seen[name] = looked
    for first, second in combinations(seen, 2):
        report["leakage"][f"{first} and {second}"] = leakage(seen[first], seen[second])
    if (data / "manifest.json").is_file():
        report["unlike_manifest"] = check_manifest(data)
    return report
