"""Measures a judge on records: accuracy, rank correlation, swap disagreement, answer mass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from rewarddance.core.errors import JudgementError
from rewarddance.core.media import Media
from rewarddance.core.parallel import all_gather_dicts, rank, world_size
from rewarddance.core.preferences import PreferenceRecord, all_pairs
from rewarddance.core.progress import tracked
from rewarddance.core.statistics import grouped_interval
from rewarddance.core.streams import stream
from rewarddance.core.types import MAX_REFUSED, Comparison, RewardModel
from rewarddance.reward.objective import agreement

Array = NDArray[np.float64]
Refused = Mapping[tuple[int, int], str]
"""Why the judge refused to compare pictures i < j of a record."""
OnRecord = Callable[[PreferenceRecord, Array, Refused], None]
"""Called with a record, its table of margins (K, K), which is antisymmetric and NaN for refused pairs, and the reasons
of these pairs."""
CLEAR = 0.05
"""Smallest difference of exact values for a pair to count as decided."""


@torch.no_grad()
def measure_judge(
    judge: RewardModel,
    records: Sequence[PreferenceRecord],
    chunk: int = 16,
    each: OnRecord | None = None,
    shared: bool = False,
    max_refused: float | None = MAX_REFUSED,
) -> dict[str, Any]:
    """Figures of a judge on held-out records.

    With exact values (`truth`), pairs whose values differ by more than `CLEAR` are scored against them. Otherwise the
    recorded choices are scored, without ties. Refused pairs are left out.

    Args:
        each: called for every record.
        shared: all processes call this together with the same records, and share the work.
        max_refused: share of records with refused pairs from which on it is an error; None takes any number.

    Returns:
        accuracy, accuracy_<source>, label_accuracy and their 95% intervals over prompts (`..._ci`); num_pairs;
        num_ties: recorded choices that are ties, which label_accuracy leaves out; answer_mass; disagreement (mean
        |m(x, ref) + m(ref, x)| / 2); spearman, spearman_ci (mean over records of the rank correlation between
        round-robin margin and truth, K >= 3); if pairs were refused: num_refused (pairs) and refused (records by
        id, with a reason).

    Raises:
        JudgementError: pairs of more than `max_refused` of the records (and of more than one) are refused.
    """
    entries, refused, num_refused = list[_Entry](), dict[str, str](), 0
    for number, entry in _answers(judge, records, chunk, shared):
        entries.append(entry)
        if each is not None:
            each(records[number], entry.table, entry.refused)
        if entry.refused:
            num_refused += len(entry.refused)
            refused[entry.record_id] = reason = next(iter(entry.refused.values()))
            if max_refused is not None and len(refused) > max(1, max_refused * len(records)):
                raise JudgementError(f"pairs of {len(refused)} of {number + 1} records were refused; last: {reason}")
    figures = _figures(entries)
    return figures | ({"num_refused": num_refused, "refused": refused} if refused else {})


@dataclass
class _Entry:
    """The judge's answers about one record, and which of them are right.

    Attributes:
        table: balanced margins (K, K); refused: the refused pairs, with reasons.
        pairs: 1 or 0 (0.5 for a margin of 0) for pairs whose exact values differ clearly; choices: the same for
            recorded choices that are no ties.
        correlation: between round-robin margin and truth, where the truth varies and no pair was refused.
    """

    record_id: str
    prompt: str
    source: str
    table: Array
    refused: Refused
    mass: Array
    disagreement: Array
    pairs: list[float] = field(default_factory=list)
    choices: list[float] = field(default_factory=list)
    num_ties: int = 0
    correlation: float | None = None


def right_pairs(record: PreferenceRecord, table: Array) -> list[float]:
    """For every answered pair whose exact values differ clearly, whether margins (K, K) order it right."""
    if record.truth is None:
        return []
    gaps = [(i, j, record.truth[i] - record.truth[j]) for i, j in all_pairs(len(record.truth))]
    return [_agree(table[i, j], gap) for i, j, gap in gaps if abs(gap) > CLEAR and not np.isnan(table[i, j])]


def _right_choices(record: PreferenceRecord, table: Array) -> list[float]:
    margins = [(table[c.first, c.second], c.label - 0.5) for c in record.choices if c.label != 0.5]
    return [_agree(m, label) for m, label in margins if not np.isnan(m)]


def _figures(entries: Sequence[_Entry]) -> dict[str, Any]:
    choices = [(e.prompt, v) for e in entries for v in e.choices]
    pairs = [(e.prompt, v) for e in entries for v in e.pairs]
    out: dict[str, Any] = {"num_pairs": len(pairs) or len(choices), "num_ties": sum(e.num_ties for e in entries)}
    out["label_accuracy"] = _share(choices)
    out["label_accuracy_ci"] = grouped_interval(choices) if choices else None
    out["accuracy"] = _share(pairs) if pairs else out["label_accuracy"]
    out["accuracy_ci"] = grouped_interval(pairs or choices) if pairs or choices else None
    for source in sorted({e.source for e in entries if e.pairs}):
        of_source = [(e.prompt, v) for e in entries if e.source == source for v in e.pairs]
        out[f"accuracy_{source}"] = _share(of_source)
        out[f"accuracy_{source}_ci"] = grouped_interval(of_source)
    correlations = [(e.prompt, e.correlation) for e in entries if e.correlation is not None]
    out["spearman"] = _share(correlations)
    out["spearman_ci"] = grouped_interval(correlations) if correlations else None
    out["answer_mass"] = _mean([e.mass for e in entries])
    out["disagreement"] = _mean([e.disagreement for e in entries])
    return out


def _share(values: Sequence[tuple[str, float]]) -> float | None:
    return float(np.mean([v for _, v in values])) if values else None


def _mean(parts: Sequence[Array]) -> float | None:
    values = np.concatenate([np.zeros(0), *parts])
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def _answers(
    judge: RewardModel, records: Sequence[PreferenceRecord], chunk: int, shared: bool
) -> Iterator[tuple[int, _Entry]]:
    """The judge's answers about every record, by number.

    Processes that share the work make the same number of calls, since a sharded judge needs all of them in each call.
    A process with less work asks its last chunk again. No process decodes the pictures of another one's share.
    """
    num_processes, process = (world_size(), rank()) if shared else (1, 0)
    chunks = [range(start, min(start + chunk, len(records))) for start in range(0, len(records), chunk)]
    for first in tracked(range(0, len(chunks), num_processes), "records by the judge"):
        numbers = chunks[min(first + process, len(chunks) - 1)]
        entries = dict(zip(numbers, _ask(judge, [records[n] for n in numbers]), strict=True))
        yield from sorted((all_gather_dicts(entries) if shared else entries).items())


def _ask(judge: RewardModel, part: Sequence[PreferenceRecord]) -> list[_Entry]:
    """The answers to all pairs of some records, in one call.

    A coin decides which picture of a pair is the candidate: data may always put the winner first, and a judge that asks
    one order only may prefer a position.
    """
    comparisons = [
        Comparison(r.prompt, r.media[i], r.media[j], r.criterion) for r in part for i, j in all_pairs(len(r.media))
    ]
    swapped = np.concatenate([_swapped_pairs(r) for r in part])
    verdict = judge.judge([c.swapped() if turn else c for c, turn in zip(comparisons, swapped, strict=True)])
    sizes = [len(all_pairs(len(r.media))) for r in part]
    ends = np.cumsum(sizes)

    def split(values: Tensor) -> list[Array]:
        return np.split(values.double().cpu().numpy(), ends[:-1])

    signs = np.split(np.where(swapped, -1.0, 1.0), ends[:-1])
    gaps = [np.zeros(0)] * len(part) if verdict.disagreement is None else split(verdict.disagreement)
    entries = []
    for k, (record, margin, mass) in enumerate(
        zip(part, split(verdict.balanced_margin), split(verdict.answer_mass), strict=True)
    ):
        pairs = enumerate(all_pairs(len(record.media)), ends[k] - sizes[k])
        reasons = {pair: verdict.refused[i] for i, pair in pairs if i in verdict.refused}
        entries.append(_entry(record, margin * signs[k], mass, gaps[k], reasons))
    return entries


def _entry(record: PreferenceRecord, margin: Array, mass: Array, disagreement: Array, refused: Refused) -> _Entry:
    """From the answers to all pairs (K (K - 1) / 2)."""
    k = len(record.media)
    table = np.zeros((k, k))
    for (i, j), m in zip(all_pairs(k), margin, strict=True):
        table[i, j], table[j, i] = m, -m
    entry = _Entry(record.record_id, record.prompt, record.source, table, refused, mass, disagreement)
    entry.choices, entry.pairs = _right_choices(record, table), right_pairs(record, table)
    entry.num_ties = sum(c.label == 0.5 for c in record.choices)
    if record.truth is not None and k >= 3 and np.ptp(record.truth) > CLEAR and not refused:
        entry.correlation = spearman(table.sum(1), np.array(record.truth))
    return entry


def _swapped_pairs(record: PreferenceRecord) -> NDArray[np.bool_]:
    """Whether the second picture of each pair is asked about as the candidate."""
    coins: NDArray[np.bool_] = stream(0, "sides", record.record_id).random(len(all_pairs(len(record.media)))) < 0.5
    return coins


@torch.no_grad()
def measure_margins(
    judge: RewardModel,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[Media]],
    references: Sequence[Sequence[Media]],
    truth: Array,
    criterion: str = "fidelity",
) -> dict[str, Any]:
    """Rank correlation between the mean margin against fixed references and an exact value.

    Args:
        candidates: K pictures of each of P prompts; references: R of each, the same for all its candidates.
        truth: (P, K).

    Returns:
        pooled: Spearman over all P K pictures, with a 95% interval over prompts; within: mean over the prompts whose
        truth varies; num_within: how many do. Prompts with refused comparisons are left out.
    """
    margins = np.zeros(truth.shape)
    rows = list(zip(prompts, candidates, references, strict=True))
    for row, (prompt, pictures, against) in enumerate(tracked(rows, "margins by the judge")):
        comparisons = [Comparison(prompt, x, r, criterion) for x in pictures for r in against]
        margins[row] = judge.judge(comparisons).margin.float().cpu().reshape(len(pictures), -1).mean(1).numpy()
    answered = ~np.isnan(margins).any(1)
    margins, truth = margins[answered], truth[answered]
    within = [spearman(m, t) for m, t in zip(margins, truth, strict=True) if np.ptp(t) > CLEAR]
    drawn = stream(0, "measure-margins").integers(len(margins), size=(500, len(margins)))
    low, high = np.nanpercentile([spearman(margins[r].ravel(), truth[r].ravel()) for r in drawn], [2.5, 97.5])
    return {
        "pooled": spearman(margins.ravel(), truth.ravel()),
        "pooled_ci_low": float(low),
        "pooled_ci_high": float(high),
        "within": float(np.mean(within)) if within else None,
        "num_within": len(within),
    }


def spearman(a: Array, b: Array) -> float:
    """Rank correlation; 0 if one side does not vary, because it orders nothing."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def _agree(margin: float, truth: float) -> float:
    return float(agreement(torch.tensor(margin), torch.tensor(truth)))
