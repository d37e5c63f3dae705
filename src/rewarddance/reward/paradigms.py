"""The ways of learning a reward, one key each: what is asked about a record, and the loss of the answers.

All losses are of verdicts, so a paradigm is a few lines here and, for scalar ones, a head in `scalar.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.errors import InputError
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.types import Comparison, Verdict
from rewarddance.reward.config import Paradigm
from rewarddance.reward.context import Reference

TIE_STRENGTH = 5.0
"""k of the Rao-Kupper model: two equal pictures tie with probability (k - 1) / (k + 1)."""


@dataclass(frozen=True)
class Question:
    """One thing to ask in training.

    Attributes:
        target: probability that the candidate is better; for `regression` its rating.
        weight: of its loss; weights of one record have mean 1.
    """

    comparison: Comparison
    target: float
    weight: float = 1.0


def questions(record: PreferenceRecord, paradigm: Paradigm, reference: Reference = "random") -> list[Question]:
    """What a paradigm asks about one record.

    Args:
        reference: `best_of_n` asks about those choices alone that the record's best picture is part of.

    Raises:
        InputError: `regression` on a record without ratings.
    """
    if paradigm == "regression":
        if record.ratings is None:
            raise InputError(f"record {record.record_id}: regression needs ratings, and the record has only choices")
        alone = (Comparison(record.prompt, m, None, record.criterion) for m in record.media)
        return [Question(c, r) for c, r in zip(alone, record.ratings, strict=True)]
    gaps = _rank_gaps(record) if paradigm == "ranking" else [1.0] * len(record.choices)
    if reference == "best_of_n" and record.choices:
        won = _share_of_wins(record)
        best = max(sorted({i for c in record.choices for i in (c.first, c.second)}), key=won.__getitem__)
        kept = [i for i, c in enumerate(record.choices) if best in (c.first, c.second)]
        record, gaps = replace(record, choices=tuple(record.choices[i] for i in kept)), [gaps[i] for i in kept]
    pairs = record.comparisons(both_orders=paradigm == "generative_pairwise")
    if paradigm == "generative_pointwise":
        return [q for c in pairs for q in _alone(c)]
    mean = sum(gaps) / max(1, len(gaps))
    weights = [g / mean for g in gaps] * (len(pairs) // max(1, len(gaps)))
    return [Question(c, _label(c), w) for c, w in zip(pairs, weights, strict=True)]


def _label(comparison: Comparison) -> float:
    return math.nan if comparison.label is None else comparison.label


def _alone(pair: Comparison) -> list[Question]:
    """Both pictures by themselves: the better one is good, the other one is not."""
    label = _label(pair)
    first, second = replace(pair, reference=None), replace(pair.swapped(), reference=None)
    return [Question(first, label), Question(second, 1 - label)]


def _share_of_wins(record: PreferenceRecord) -> list[float]:
    """The share of its comparisons that each picture wins (Copeland); one half where it was in none."""
    wins, met = [0.0] * len(record.media), [0] * len(record.media)
    for c in record.choices:
        wins[c.first] += c.label
        wins[c.second] += 1 - c.label
        met[c.first] += 1
        met[c.second] += 1
    return [w / m if m else 0.5 for w, m in zip(wins, met, strict=True)]


def _rank_gaps(record: PreferenceRecord) -> list[float]:
    """How far apart the sides of every choice stand in the order that all choices together imply.

    Equal shares of wins stand half a place apart, so that no choice is without weight.
    """
    share = _share_of_wins(record)
    rank = [sum(other > mine for other in share) for mine in share]
    return [max(0.5, abs(rank[c.first] - rank[c.second])) for c in record.choices]


def losses(paradigm: Paradigm, verdict: Verdict, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Loss of every answer, (N,).

    Generative paradigms: cross-entropy over the whole vocabulary, so the mass on the answer words is learnt too.
    `bradley_terry`, `uncertainty`, `ranking`: -log sigmoid of the margin (a tie is half of each side).
    `bradley_terry_ties`: Rao-Kupper. `regression`: squared error of the score.

    Args:
        targets: (N,), see `Question.target`.
        smoothing: targets are drawn this far towards one half.
    """
    if paradigm == "regression":
        return (verdict.margin - targets) ** 2
    if paradigm == "bradley_terry_ties":
        return rao_kupper_loss(without_ties(verdict.margin), targets * (1 - smoothing) + 0.5 * smoothing)
    y = targets * (1 - smoothing) + 0.5 * smoothing
    return -(y * verdict.logp_yes + (1 - y) * verdict.logp_no)


def rao_kupper_loss(margin: Tensor, targets: Tensor, k: float = TIE_STRENGTH) -> Tensor:
    """Bradley-Terry with ties (Rao and Kupper 1967) of a difference of scores m, (N,).

    -log P(win) = -log s(m - ln k); -log P(loss) = -log s(-m - ln k);
    -log P(tie) = -log s(m - ln k) - log s(-m - ln k) - ln(k^2 - 1).
    A target t weighs win by 2t - 1 above one half, loss by 1 - 2t below, and tie by the rest.
    """
    shift = math.log(k)
    win, loss = -F.logsigmoid(margin - shift), -F.logsigmoid(-margin - shift)
    tie = win + loss - math.log(k**2 - 1)
    sure = (2 * targets - 1).clamp(-1, 1)
    return sure.clamp(min=0) * win + (-sure).clamp(min=0) * loss + (1 - sure.abs()) * tie


def with_ties(difference: Tensor, k: float = TIE_STRENGTH) -> Tensor:
    """Log-odds of P(win) + P(tie) / 2 in the model of `rao_kupper_loss`, from a difference of scores d, (N,).

    P(win) - P(loss) = sinh d / (cosh d + c) with c = cosh ln k, so the odds are (e^d + c) / (e^-d + c).
    """
    c = torch.full_like(difference, math.log((k + 1 / k) / 2))
    return torch.logaddexp(difference, c) - torch.logaddexp(-difference, c)


def without_ties(margin: Tensor, k: float = TIE_STRENGTH) -> Tensor:
    """The difference of scores that `with_ties` made a margin of, (N,): d = m / 2 + asinh(c sinh(m / 2))."""
    c = (k + 1 / k) / 2
    return margin / 2 + (c * (margin / 2).sinh()).asinh()


def gaussian_margin(mean: Tensor, variance: Tensor) -> Tensor:
    """Log-odds of E[sigmoid(d)] for d ~ N(mean, variance), (N,): the margin of scores that know their doubt (HPSv3).

    Trapezoidal rule in the log domain over 12 standard deviations, sixteen nodes a standard deviation: the sigmoid's
    poles lie at +-i pi, so the rule's error is below exp(-31) up to standard deviation 10.
    """
    u = torch.arange(-12, 12.01, 1 / 16).to(mean)
    d = mean[:, None] + variance.sqrt()[:, None] * u
    log_w = -0.5 * u**2
    return torch.logsumexp(F.logsigmoid(d) + log_w, 1) - torch.logsumexp(F.logsigmoid(-d) + log_w, 1)


def targets_of(asked: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """(targets, weights), each (N,)."""
    return torch.tensor([q.target for q in asked]), torch.tensor([q.weight for q in asked])
