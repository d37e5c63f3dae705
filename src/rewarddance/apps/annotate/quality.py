"""The agreement between people, and figures of each person's work. Pure functions on judgements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean, median
from typing import Any

from rewarddance.apps.annotate.answers import passed, votes_of
from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.reading import Given
from rewarddance.core.statistics import share
from rewarddance.data.agreement import krippendorff
from rewarddance.data.raters import cohen_kappa, dawid_skene, majority

Unit = tuple[int, int, int]
"""Item and two of its candidates, or one candidate twice for a rating."""
CLASSES = ("first", "second", "tie")
MIN_SHARED = 5
"""Items that two people must share before their kappa is shown."""


def labels_of(given: Given, config: DeskConfig) -> dict[str, dict[Unit, float]]:
    """The values of a judgement by criterion: for every pair 1, 0 or 0.5 (a tie), or the rating of every picture."""
    made: dict[str, dict[Unit, float]] = {}
    for vote in votes_of(given.answers, given.members, given.order, config):
        own = made.setdefault(vote.criterion, {})
        if vote.kind == "rating":
            own[given.item, vote.media[0], vote.media[0]] = vote.values[0]
        elif vote.kind == "choice":
            own[given.item, vote.media[0], vote.media[1]] = vote.values[0]
        else:
            for (i, a), (j, b) in combinations(zip(vote.media, vote.values, strict=True), 2):
                own[given.item, i, j] = 0.5 if a == b else float(a < b)
    return made


def agreement(judgements: Sequence[Given], config: DeskConfig) -> dict[str, Any]:
    """By criterion: Krippendorff's alpha with its interval, and the mean Cohen's kappa of people who share items.

    Alpha is nominal for choices and rankings (over pairs) and interval for ratings.
    """
    table: dict[str, Any] = {}
    for criterion, units in _units(judgements, config).items():
        level = "interval" if config.task == "rating" else "nominal"
        alpha = krippendorff([list(v.values()) for v in units.values()], level)  # type: ignore[arg-type]
        table[criterion] = asdict(alpha) | {"kappa": _mean_kappa(units)}
    return table


def _units(judgements: Sequence[Given], config: DeskConfig) -> dict[str, dict[Unit, dict[str, float]]]:
    units: dict[str, dict[Unit, dict[str, float]]] = {c: defaultdict(dict) for c in config.asked}
    for given in judgements:
        if given.counts:
            for criterion, labels in labels_of(given, config).items():
                for unit, value in labels.items():
                    units[criterion][unit][given.code] = value
    return units


def _mean_kappa(units: dict[Unit, dict[str, float]]) -> float | None:
    shared: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for votes in units.values():
        for a, b in combinations(sorted(votes), 2):
            shared[a, b].append((votes[a], votes[b]))
    values = []
    for both in shared.values():
        if len(both) >= MIN_SHARED:
            first, second = zip(*both, strict=True)
            values.append(cohen_kappa(first, second))
    known = [v for v in values if v is not None]
    return fmean(known) if known else None


@dataclass(frozen=True)
class PairLabel:
    """What people say about a pair by one criterion.

    Attributes:
        unit: item and its two candidates. majority: 0, 1 or 2 as in `CLASSES`; None if two labels lead.
        posterior: the model's probability of each of `CLASSES`.
    """

    unit: Unit
    majority: int | None
    posterior: tuple[float, ...]

    @property
    def best(self) -> int:
        """The label that the model finds likeliest."""
        return max(range(len(CLASSES)), key=self.posterior.__getitem__)

    def as_words(self) -> dict[str, Any]:
        """The majority's label, the model's label, and its probability."""
        word = "no majority" if self.majority is None else CLASSES[self.majority]
        return {"majority": word, "model": CLASSES[self.best], "p": self.posterior[self.best]}


@dataclass(frozen=True)
class RaterFit:
    """Dawid and Skene's model of one criterion beside the majority.

    Attributes:
        reliability: by person, 1 (always right) over 0 (blind) to -1 (always the opposite).
        pairs: the labels of all judged pairs.
    """

    reliability: dict[str, float]
    pairs: tuple[PairLabel, ...]

    @property
    def differ(self) -> list[dict[str, Any]]:
        """The pairs on which model and majority differ."""
        return [{"item": p.unit[0], **p.as_words()} for p in self.pairs if p.majority != p.best]


def rater_models(judgements: Sequence[Given], config: DeskConfig) -> dict[str, RaterFit]:
    """Dawid and Skene's model by criterion, over pairs.

    A person may be reliable by one criterion and not by another, so each criterion has a model of its own. Ratings have
    none. A criterion without a pair that two people judged has none either.
    """
    if config.task == "rating":
        return {}
    fits = {}
    number = {1.0: 0, 0.0: 1, 0.5: 2}
    for criterion, units in _units(judgements, config).items():
        labels = [{who: number[v] for who, v in votes.items()} for votes in units.values()]
        if not any(len(votes) > 1 for votes in labels):
            continue
        model = dawid_skene(labels, len(CLASSES))
        pairs = tuple(
            PairLabel(unit, majority(votes, len(CLASSES)), tuple(map(float, posterior)))
            for unit, votes, posterior in zip(units, labels, model.posterior, strict=True)
        )
        fits[criterion] = RaterFit({name: model.reliability(name) for name in sorted(model.confusion)}, pairs)
    return fits


def people_table(judgements: Sequence[Given], config: DeskConfig) -> dict[str, dict[str, Any]]:
    """Figures of each person's work, by code.

    `left`: share of decided choices for the left picture; without a side bias, one half is in its interval. `checks`:
    how many were seen and failed. `repeats`: how many were shown again and got an equal answer.
    """
    own: dict[str, list[Given]] = defaultdict(list)
    for given in judgements:
        own[given.code].append(given)
    return {code: _person(rows, config) for code, rows in own.items()}


def _person(rows: Sequence[Given], config: DeskConfig) -> dict[str, Any]:
    checks = [g for g in rows if g.noise is not None]
    failed = sum(not passed(g.noise or 0, g.order, g.answers, config) for g in checks)
    first = {g.item: g for g in rows if not g.again}
    repeats = [labels_of(g, config) == labels_of(first[g.item], config) for g in rows if g.again and g.item in first]
    counted = [g for g in rows if not g.again and g.noise is None]
    picks = [a["choice"] for g in counted for a in g.answers.values() if a.get("choice") in ("first", "second")]
    return {
        "judged": len(counted),
        "median_seconds": median(g.seconds for g in rows),
        "left": share(picks.count("first"), len(picks)),
        "checks": {"failed": failed, "seen": len(checks)},
        "repeats": {"equal": sum(repeats), "seen": len(repeats)},
        "last": max(g.created for g in rows),
    }
