"""How good a judge is on records: accuracy, rank correlation, swap disagreement, answer mass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from rewarddance.core.errors import JudgementError
from rewarddance.core.media import Media
from rewarddance.core.parallel import any_of, everyones, rank, world_size
from rewarddance.core.preferences import PreferenceRecord, all_pairs
from rewarddance.core.streams import stream
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.reward.objective import agreement

MOST_REFUSED = 0.05
"""Share of records that may stay unanswered and be listed; a judge that refuses more is no judge yet."""
CLEAR = 0.05
"""Least difference of exact values for a pair to count as decided."""


@torch.no_grad()
def measure_judge(
    judge: RewardModel,
    records: Sequence[PreferenceRecord],
    chunk: int = 16,
    each: Callable[[PreferenceRecord, NDArray[np.float64]], None] | None = None,
    shared: bool = False,
) -> dict[str, Any]:
    """Figures of a judge on held-out records.

    With exact values (`truth`), pairs that differ by more than `CLEAR` are scored against them; otherwise the
    recorded choices are, ties left out.

    Args:
        each: told of every record and its table of margins (K, K), antisymmetric.
        shared: all processes call this together with the same records, and share the work.

    Returns:
        accuracy, accuracy_<source> and its 95% interval over prompts, num_pairs, label_accuracy and its interval,
        answer_mass, disagreement (mean |m(x, ref) + m(ref, x)| / 2), spearman (mean over prompts of the rank
        correlation between round-robin margin and truth, K >= 3); num_refused and refused: records that the judge did
        not answer, by id with the reason, which no figure counts.

    Raises:
        JudgementError: more than `MOST_REFUSED` of the records are not answered.
    """
    seen, refused = _Tally(), list[tuple[str, str]]()
    for number, answer in _answered(judge, records, chunk, shared):
        record = records[number]
        if isinstance(answer, str):
            refused.append((record.record_id, answer))
            if len(refused) > max(1, MOST_REFUSED * len(records)):
                raise JudgementError(f"{len(refused)} of {number + 1} records were not answered; last: {answer}")
            continue
        table = np.zeros((len(record.media), len(record.media)))
        for (i, j), margin in zip(all_pairs(len(record.media)), answer.margin, strict=True):
            table[i, j], table[j, i] = margin, -margin
        if each is not None:
            each(record, table)
        seen.note(record, table, answer)
    out = seen.figures()
    if refused:
        out |= {"num_refused": len(refused), "refused": dict(refused)}
    return out


@dataclass
class _Answer:
    """What a judge said to all pairs of one record (N of them)."""

    margin: NDArray[np.float64]
    mass: NDArray[np.float64]
    disagreement: NDArray[np.float64] | None


def _mean(parts: Sequence[NDArray[np.float64]]) -> float | None:
    return float(np.concatenate(parts).mean()) if parts else None


@dataclass
class _Tally:
    """What was right: pairs by exact values (source, prompt, right), choices (prompt, right), rank correlations."""

    pairs: list[tuple[str, str, float]] = field(default_factory=list)
    choices: list[tuple[str, float]] = field(default_factory=list)
    correlations: list[float] = field(default_factory=list)
    masses: list[NDArray[np.float64]] = field(default_factory=list)
    disagreements: list[NDArray[np.float64]] = field(default_factory=list)

    def note(self, record: PreferenceRecord, table: NDArray[np.float64], answer: _Answer) -> None:
        self.masses.append(answer.mass)
        if answer.disagreement is not None:
            self.disagreements.append(answer.disagreement)
        for c in record.choices:
            if c.label != 0.5:
                self.choices.append((record.prompt, _agree(table[c.first, c.second], c.label - 0.5)))
        if record.truth is None:
            return
        for i, j in all_pairs(len(record.media)):
            gap = record.truth[i] - record.truth[j]
            if abs(gap) > CLEAR:
                self.pairs.append((record.source, record.prompt, _agree(table[i, j], gap)))
        if len(record.media) >= 3 and np.ptp(record.truth) > CLEAR:
            self.correlations.append(spearman(table.sum(1), np.array(record.truth)))

    def figures(self) -> dict[str, Any]:
        out: dict[str, Any] = {"num_pairs": len(self.pairs) or len(self.choices)}
        out["label_accuracy"] = float(np.mean([v for _, v in self.choices])) if self.choices else None
        out["label_accuracy_ci"] = _interval(self.choices) if self.choices else None
        out["accuracy"] = float(np.mean([v for *_, v in self.pairs])) if self.pairs else out["label_accuracy"]
        for source in sorted({s for s, *_ in self.pairs}):
            own = [(p, v) for s, p, v in self.pairs if s == source]
            out[f"accuracy_{source}"] = float(np.mean([v for _, v in own]))
            out[f"accuracy_{source}_ci"] = _interval(own)
        out["spearman"] = float(np.nanmean(self.correlations)) if self.correlations else None
        out["answer_mass"] = _mean(self.masses)
        out["disagreement"] = _mean(self.disagreements)
        return out


def _answered(
    judge: RewardModel, records: Sequence[PreferenceRecord], chunk: int, shared: bool
) -> Iterator[tuple[int, _Answer | str]]:
    """What the judge says to every record; where it does not answer, why.

    A chunk that is not answered is asked again record by record. Processes that share the work make the same number
    of calls (a sharded judge needs all of them in each), so those with less to do ask something twice.
    """
    processes, mine = (world_size(), rank()) if shared else (1, 0)
    chunks = [range(start, min(start + chunk, len(records))) for start in range(0, len(records), chunk)]
    for first in range(0, len(chunks), processes):
        numbers = chunks[min(first + mine, len(chunks) - 1)]
        answers, reason = _ask(judge, records, numbers)
        if any_of(reason is not None) if shared else reason is not None:
            for turn in range(chunk):
                number = numbers[turn % len(numbers)]
                alone, why = _ask(judge, records, [number])
                answers[number] = alone[number] if why is None else why
        yield from sorted((everyones(answers) if shared else answers).items())


def _ask(
    judge: RewardModel, records: Sequence[PreferenceRecord], numbers: Sequence[int]
) -> tuple[dict[int, _Answer | str], str | None]:
    """Answers to all pairs of some records in one call; none, and the reason, where the judge refuses.

    Which picture of a pair is the candidate is drawn: data may put the winner first always, and a judge that asks
    one order only may lean to a place.
    """
    part = [records[n] for n in numbers]
    asked = [
        Comparison(r.prompt, r.media[i], r.media[j], r.criterion) for r in part for i, j in all_pairs(len(r.media))
    ]
    turned = np.concatenate([_turned(r) for r in part])
    try:
        verdict = judge.judge([c.swapped() if turn else c for c, turn in zip(asked, turned, strict=True)])
    except JudgementError as error:
        return {}, str(error)
    ends = np.cumsum([len(all_pairs(len(r.media))) for r in part])[:-1]

    def cut(values: torch.Tensor, signs: NDArray[np.float64] | float = 1.0) -> list[NDArray[np.float64]]:
        return np.split(values.double().cpu().numpy() * signs, ends)

    swaps = [None] * len(numbers) if verdict.disagreement is None else cut(verdict.disagreement)
    answers = zip(cut(verdict.margin, np.where(turned, -1.0, 1.0)), cut(verdict.answer_mass), swaps, strict=True)
    return {n: _Answer(*answer) for n, answer in zip(numbers, answers, strict=True)}, None


def _turned(record: PreferenceRecord) -> NDArray[np.bool_]:
    """Whether the second picture of each pair is asked about as the candidate."""
    coins: NDArray[np.bool_] = stream(0, "sides", record.record_id).random(len(all_pairs(len(record.media)))) < 0.5
    return coins


def _interval(rights: Sequence[tuple[str, float]]) -> list[float]:
    """95% bootstrap interval of the share of pairs that are right; prompts are drawn, with all their records."""
    place = {prompt: i for i, prompt in enumerate(sorted({p for p, _ in rights}))}
    sums = np.zeros((len(place), 2))
    for prompt, right in rights:
        sums[place[prompt]] += (right, 1)
    rows = stream(0, "measure-judge").integers(len(place), size=(1000, len(place)))
    drawn = sums[rows].sum(1)
    return [float(v) for v in np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])]


@torch.no_grad()
def measure_margins(
    judge: RewardModel,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[Media]],
    references: Sequence[Sequence[Media]],
    truth: NDArray[np.float64],
    criterion: str = "fidelity",
) -> dict[str, Any]:
    """Rank correlation between the mean margin against fixed references and an exact value.

    Args:
        candidates: K pictures of each of P prompts; references: R of each, the same for all its candidates.
        truth: (P, K).

    Returns:
        pooled: Spearman over all P K pictures, with a 95% interval over prompts; within: mean over the prompts
        whose truth varies; num_within: how many do.
    """
    found = np.zeros(truth.shape)
    for row, (prompt, mine, others) in enumerate(zip(prompts, candidates, references, strict=True)):
        asked = [Comparison(prompt, x, r, criterion) for x in mine for r in others]
        found[row] = judge.judge(asked).margin.float().cpu().reshape(len(mine), -1).mean(1).numpy()
    within = [spearman(m, t) for m, t in zip(found, truth, strict=True) if np.ptp(t) > CLEAR]
    rows = stream(0, "measure-margins").integers(len(found), size=(500, len(found)))
    drawn = [spearman(found[r].ravel(), truth[r].ravel()) for r in rows]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {
        "pooled": spearman(found.ravel(), truth.ravel()),
        "pooled_ci_low": float(low),
        "pooled_ci_high": float(high),
        "within": float(np.mean(within)) if within else None,
        "num_within": len(within),
    }


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Rank correlation; 0 where one side does not vary, because it orders nothing."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def _agree(margin: float, truth: float) -> float:
    return float(agreement(torch.tensor(margin), torch.tensor(truth)))
