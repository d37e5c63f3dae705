"""The ways of learning a reward, one key each: the questions about a record, and the loss of the answers.

All losses are functions of verdicts, so a paradigm is a few lines here and, if it is scalar, a head in `scalar.py`.
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

FIRST_TIE_STRENGTH = 5.0
"""k of the Rao-Kupper model in a new head; training sets it from its data. Two equal pictures tie with probability
(k - 1) / (k + 1)."""


@dataclass(frozen=True)
class Question:
    """One question in training.

    Attributes:
        target: probability that the candidate is better; for `regression` its rating.
        weight: weight of its loss; the weights of one record have mean 1.
    """

    comparison: Comparison
    target: float
    weight: float = 1.0


def questions(
    record: PreferenceRecord, paradigm: Paradigm, reference: Reference = "random", pointwise_weight: float = 0.0
) -> list[Question]:
    """The questions of a paradigm about one record.

    Args:
        reference: `best_of_n` keeps only the choices that the record's best picture takes part in.
        pointwise_weight: above 0, `generative_pairwise` also asks about every picture alone. The target is the share of
            its choices that the picture wins; a comparison has the weight 1.

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
        share = _share_of_wins(record)
        best = max(sorted({i for c in record.choices for i in (c.first, c.second)}), key=share.__getitem__)
        kept = [i for i, c in enumerate(record.choices) if best in (c.first, c.second)]
        record, gaps = replace(record, choices=tuple(record.choices[i] for i in kept)), [gaps[i] for i in kept]
    pairs = record.comparisons(both_orders=paradigm == "generative_pairwise")
    if paradigm == "generative_pointwise":
        return [q for c in pairs for q in _alone(c)]
    mean = sum(gaps) / max(1, len(gaps))
    weights = [g / mean for g in gaps] * (len(pairs) // max(1, len(gaps)))
    compared = [Question(c, _label(c), w) for c, w in zip(pairs, weights, strict=True)]
    return compared + (_each_alone(record, pointwise_weight) if pointwise_weight else [])


def _each_alone(record: PreferenceRecord, weight: float) -> list[Question]:
    """One pointwise question for every picture that takes part in a choice.

    Cross-entropy is linear in its target. So the share of wins gives the same gradient as one question for each choice.
    """
    share = _share_of_wins(record)
    chosen = sorted({i for c in record.choices for i in (c.first, c.second)})
    alone = [Comparison(record.prompt, record.media[i], None, record.criterion) for i in chosen]
    return [Question(c, share[i], weight) for c, i in zip(alone, chosen, strict=True)]


def _label(comparison: Comparison) -> float:
    return math.nan if comparison.label is None else comparison.label


def _alone(pair: Comparison) -> list[Question]:
    """Both pictures of a pair by themselves; the label says how good the candidate is."""
    label = _label(pair)
    first, second = replace(pair, reference=None), replace(pair.swapped(), reference=None)
    return [Question(first, label), Question(second, 1 - label)]


def _share_of_wins(record: PreferenceRecord) -> list[float]:
    """The share of its choices that each picture wins (Copeland); one half for a picture without choices."""
    wins, num = [0.0] * len(record.media), [0] * len(record.media)
    for c in record.choices:
        wins[c.first] += c.label
        wins[c.second] += 1 - c.label
        num[c.first] += 1
        num[c.second] += 1
    return [w / n if n else 0.5 for w, n in zip(wins, num, strict=True)]


def _rank_gaps(record: PreferenceRecord) -> list[float]:
    """Distance in rank between the two pictures of every choice, in the order that all choices together imply.

    Pictures with equal shares of wins are half a rank apart, so that every choice has some weight.
    """
    share = _share_of_wins(record)
    rank = [sum(other > own for other in share) for own in share]
    return [max(0.5, abs(rank[c.first] - rank[c.second])) for c in record.choices]


def losses(paradigm: Paradigm, verdict: Verdict, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Loss of every answer, (N,).

    Generative paradigms: cross-entropy over the whole vocabulary, so the mass on the answer words is learnt too.
    `bradley_terry`, `uncertainty`, `ranking`: -log sigmoid of the margin (a tie counts half for each side).
    `bradley_terry_ties`: Rao-Kupper. `regression`: squared error of the score.

    Args:
        targets: (N,), see `Question.target`.
        smoothing: targets are moved towards one half by this share.
    """
    if paradigm == "regression":
        return (verdict.margin - targets) ** 2
    y = targets * (1 - smoothing) + 0.5 * smoothing
    if paradigm == "bradley_terry_ties":
        return rao_kupper_loss(verdict.parts["difference"], y, verdict.parts["tie_strength"])
    return -(y * verdict.logp_yes + (1 - y) * verdict.logp_no)


def rao_kupper_loss(difference: Tensor, targets: Tensor, k: Tensor) -> Tensor:
    """Bradley-Terry with ties (Rao and Kupper 1967) of a difference of scores d, (N,).

    -log P(win) = -log s(d - ln k); -log P(loss) = -log s(-d - ln k);
    -log P(tie) = -log s(d - ln k) - log s(-d - ln k) - ln(k^2 - 1).
    A target t above one half weighs win by 2t - 1, a target below weighs loss by 1 - 2t; the rest weighs tie.

    Args:
        k: strength of ties, above 1; two equal pictures tie with probability (k - 1) / (k + 1).
    """
    shift = k.log()
    win, loss = -F.logsigmoid(difference - shift), -F.logsigmoid(-difference - shift)
    tie = win + loss - (k - 1).log() - (k + 1).log()
    sure = (2 * targets - 1).clamp(-1, 1)
    return sure.clamp(min=0) * win + (-sure).clamp(min=0) * loss + (1 - sure.abs()) * tie


def with_ties(difference: Tensor, k: Tensor) -> Tensor:
    """Log-odds of P(win) + P(tie) / 2 in the model of `rao_kupper_loss`, from a difference of scores d, (N,).

    P(win) - P(loss) = sinh d / (cosh d + c) with c = cosh ln k, so the odds are (e^d + c) / (e^-d + c).
    """
    c = ((k + 1 / k) / 2).log().expand_as(difference)
    return torch.logaddexp(difference, c) - torch.logaddexp(-difference, c)


def gaussian_margin(mean: Tensor, variance: Tensor) -> Tensor:
    """Log-odds of E[sigmoid(d)] for d ~ N(mean, variance), (N,): the margin of two uncertain scores (HPSv3).

    Trapezoidal rule in the log domain over 12 standard deviations, sixteen nodes a standard deviation. The sigmoid's
    poles lie at +-i pi, so the rule's error is below exp(-31) up to standard deviation 10.
    """
    u = torch.arange(-12, 12.01, 1 / 16).to(mean)
    d = mean[:, None] + variance.sqrt()[:, None] * u
    log_w = -0.5 * u**2
    return torch.logsumexp(F.logsigmoid(d) + log_w, 1) - torch.logsumexp(F.logsigmoid(-d) + log_w, 1)


def targets_of(batch: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """(targets, weights), each (N,)."""
    return torch.tensor([q.target for q in batch]), torch.tensor([q.weight for q in batch])
