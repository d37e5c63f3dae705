"""How good a judge is on records: accuracy, rank correlation, swap disagreement, answer mass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from rewarddance.core.errors import JudgementError
from rewarddance.core.media import Media
from rewarddance.core.parallel import any_of, everyones, rank, world_size
from rewarddance.core.preferences import PreferenceRecord, all_pairs
from rewarddance.core.progress import tracked
from rewarddance.core.statistics import grouped_interval
from rewarddance.core.streams import stream
from rewarddance.core.types import Comparison, RewardModel
from rewarddance.reward.objective import agreement

Array = NDArray[np.float64]
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
        accuracy, accuracy_<source>, label_accuracy and their 95% intervals over prompts (`..._ci`); num_pairs;
        answer_mass; disagreement (mean |m(x, ref) + m(ref, x)| / 2); spearman, spearman_ci (mean over records of the
        rank correlation between round-robin margin and truth, K >= 3); num_refused and refused: records that the judge
        did not answer, by id with the reason, which no figure counts.

    Raises:
        JudgementError: more than `MOST_REFUSED` of the records are not answered.
    """
    entries, refused = list[_Entry](), list[tuple[str, str]]()
    for number, entry in _answered(judge, records, chunk, shared):
        if entry.refused is None:
            entries.append(entry)
            if each is not None:
                each(records[number], entry.table)
            continue
        refused.append((entry.record_id, entry.refused))
        if len(refused) > max(1, MOST_REFUSED * len(records)):
            raise JudgementError(f"{len(refused)} of {number + 1} records were not answered; last: {entry.refused}")
    out = _figures(entries)
    if refused:
        out |= {"num_refused": len(refused), "refused": dict(refused)}
    return out


@dataclass
class _Entry:
    """What a judge said about one record: its table of margins (K, K), and what of it was right; or why it refused.

    Attributes:
        pairs: right or not, of pairs whose exact values differ clearly; choices: of recorded choices that are no ties.
        correlation: between round-robin margin and truth, where there is any to find.
    """

    record_id: str
    prompt: str
    source: str
    refused: str | None = None
    table: Array = field(default_factory=lambda: np.zeros((0, 0)))
    pairs: list[float] = field(default_factory=list)
    choices: list[float] = field(default_factory=list)
    correlation: float | None = None
    mass: Array = field(default_factory=lambda: np.zeros(0))
    disagreement: Array = field(default_factory=lambda: np.zeros(0))


def _entry(record: PreferenceRecord, margin: Array, mass: Array, disagreement: Array) -> _Entry:
    """From the answers to all pairs (K (K - 1) / 2)."""
    k = len(record.media)
    table = np.zeros((k, k))
    for (i, j), m in zip(all_pairs(k), margin, strict=True):
        table[i, j], table[j, i] = m, -m
    found = _Entry(record.record_id, record.prompt, record.source, None, table, mass=mass, disagreement=disagreement)
    found.choices = [_agree(table[c.first, c.second], c.label - 0.5) for c in record.choices if c.label != 0.5]
    found.pairs = rights(record, table)
    if record.truth is not None and k >= 3 and np.ptp(record.truth) > CLEAR:
        found.correlation = spearman(table.sum(1), np.array(record.truth))
    return found


def rights(record: PreferenceRecord, table: Array) -> list[float]:
    """For every pair whose exact values differ clearly, whether margins (K, K) order it so; empty without `truth`."""
    if record.truth is None:
        return []
    gaps = [(i, j, record.truth[i] - record.truth[j]) for i, j in all_pairs(len(record.truth))]
    return [_agree(table[i, j], gap) for i, j, gap in gaps if abs(gap) > CLEAR]


def _figures(entries: Sequence[_Entry]) -> dict[str, Any]:
    choices = [(e.prompt, v) for e in entries for v in e.choices]
    pairs = [(e.prompt, v) for e in entries for v in e.pairs]
    out: dict[str, Any] = {"num_pairs": len(pairs) or len(choices)}
    out["label_accuracy"] = _share(choices)
    out["label_accuracy_ci"] = grouped_interval(choices) if choices else None
    out["accuracy"] = _share(pairs) if pairs else out["label_accuracy"]
    out["accuracy_ci"] = grouped_interval(pairs or choices) if pairs or choices else None
    for source in sorted({e.source for e in entries if e.pairs}):
        own = [(e.prompt, v) for e in entries if e.source == source for v in e.pairs]
        out[f"accuracy_{source}"] = _share(own)
        out[f"accuracy_{source}_ci"] = grouped_interval(own)
    correlations = [(e.prompt, e.correlation) for e in entries if e.correlation is not None]
    out["spearman"] = _share(correlations)
    out["spearman_ci"] = grouped_interval(correlations) if correlations else None
    out["answer_mass"] = _mean([e.mass for e in entries])
    out["disagreement"] = _mean([e.disagreement for e in entries])
    return out


def _share(rights: Sequence[tuple[str, float]]) -> float | None:
    return float(np.mean([v for _, v in rights])) if rights else None


def _mean(parts: Sequence[Array]) -> float | None:
    values = np.concatenate([np.zeros(0), *parts])
    return float(values.mean()) if len(values) else None


def _answered(
    judge: RewardModel, records: Sequence[PreferenceRecord], chunk: int, shared: bool
) -> Iterator[tuple[int, _Entry]]:
    """What the judge says to every record, by number.

    A chunk that is not answered is asked again record by record. Processes that share the work make the same number
    of calls (a sharded judge needs all of them in each), so those with less to do ask something twice. None reads
    the pictures of another's share.
    """
    processes, mine = (world_size(), rank()) if shared else (1, 0)
    chunks = [range(start, min(start + chunk, len(records))) for start in range(0, len(records), chunk)]
    for first in tracked(range(0, len(chunks), processes), "records by the judge"):
        numbers = chunks[min(first + mine, len(chunks) - 1)]
        part = [records[n] for n in numbers]
        found = _ask(judge, part)
        again = any_of(isinstance(found, str)) if shared else isinstance(found, str)
        if again or isinstance(found, str):
            alone = [part[turn % len(part)] for turn in range(chunk)]
            found = [_or_refused(record, _ask(judge, [record])) for record in alone]
        answers: dict[int, _Entry] = dict(zip(numbers, found, strict=False))
        yield from sorted((everyones(answers) if shared else answers).items())


def _or_refused(record: PreferenceRecord, found: list[_Entry] | str) -> _Entry:
    if isinstance(found, str):
        return _Entry(record.record_id, record.prompt, record.source, found)
    return found[0]


def _ask(judge: RewardModel, part: Sequence[PreferenceRecord]) -> list[_Entry] | str:
    """Answers to all pairs of some records in one call; the reason where the judge refuses.

    Which picture of a pair is the candidate is drawn: data may put the winner first always, and a judge that asks
    one order only may lean to a place.
    """
    asked = [
        Comparison(r.prompt, r.media[i], r.media[j], r.criterion) for r in part for i, j in all_pairs(len(r.media))
    ]
    turned = np.concatenate([_turned(r) for r in part])
    try:
        verdict = judge.judge([c.swapped() if turn else c for c, turn in zip(asked, turned, strict=True)])
    except JudgementError as error:
        return str(error)
    ends = np.cumsum([len(all_pairs(len(r.media))) for r in part])[:-1]

    def cut(values: Tensor) -> list[Array]:
        return np.split(values.double().cpu().numpy(), ends)

    swaps = [np.zeros(0)] * len(part) if verdict.disagreement is None else cut(verdict.disagreement)
    signs = np.split(np.where(turned, -1.0, 1.0), ends)
    answers = zip(part, cut(verdict.margin), signs, cut(verdict.answer_mass), swaps, strict=True)
    return [_entry(r, margin * sign, mass, swap) for r, margin, sign, mass, swap in answers]


def _turned(record: PreferenceRecord) -> NDArray[np.bool_]:
    """Whether the second picture of each pair is asked about as the candidate."""
    coins: NDArray[np.bool_] = stream(0, "sides", record.record_id).random(len(all_pairs(len(record.media)))) < 0.5
    return coins


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
    rows_of = list(zip(prompts, candidates, references, strict=True))
    for row, (prompt, mine, others) in enumerate(tracked(rows_of, "margins by the judge")):
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
