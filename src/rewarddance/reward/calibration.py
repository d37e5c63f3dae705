"""Does P(yes) mean what it says? Calibration error, a temperature and a tie threshold.

Fitted on one half of the prompts and reported on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rewarddance.core.errors import InputError
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.streams import stream
from rewarddance.core.types import RewardModel

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answered:
    """Judged choices: margins and labels (N,), and the swap disagreement and answer mass of each."""

    margins: Array
    labels: Array
    disagreement: Array
    mass: Array


@torch.no_grad()
def ask(judge: RewardModel, records: Sequence[PreferenceRecord], chunk: int = 16) -> Answered:
    """Judge every recorded choice."""
    found: list[NDArray[np.float64]] = []
    for i in range(0, len(records), chunk):
        asked = [c for r in records[i : i + chunk] for c in r.comparisons() if c.label is not None]
        if not asked:
            continue
        v = judge.judge(asked)
        swaps = torch.full_like(v.margin, torch.nan) if v.disagreement is None else v.disagreement
        labels = torch.tensor([c.label for c in asked], dtype=torch.float64)
        found.append(torch.stack([x.double().cpu() for x in (v.margin, labels, swaps, v.answer_mass)]).numpy())
    if not found:
        raise InputError("calibration needs choices, and there are none")
    return Answered(*np.concatenate(found, 1))


def expected_calibration_error(p: Array, labels: Array, bins: int = 10) -> float:
    """Mean over equally filled bins of |mean P(yes) - share preferred| (Naeini et al. 2015, adaptive bins).

    Every choice is counted from both sides, so it does not matter which picture the data put first; where that is
    always the winner, one side alone would call any judge overcautious.

    Args:
        p: (N,) in [0, 1]; labels: (N,), the share of raters who prefer the candidate.
    """
    p, labels = np.concatenate([p, 1 - p]), np.concatenate([labels, 1 - labels])
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [abs(p[part].mean() - labels[part].mean()) * len(part) for part in parts]
    return float(np.sum(gaps) / len(p))


def fit_temperature(margins: Array, labels: Array) -> float:
    """T that makes sigmoid(margin / T) likeliest (Guo et al., arXiv 1706.04599), between 0.05 and 20."""

    def loss(log_t: float) -> float:
        z = margins / np.exp(log_t)
        return float(np.mean(np.logaddexp(0, -z) * labels + np.logaddexp(0, z) * (1 - labels)))

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.05, 20.0]), method="bounded").x))


TIE = (0.4 - 1e-6, 0.6 + 1e-6)
"""Labels in this range count as ties; 0.4 and 0.6 do, also where they were stored as fp32."""


def three_way(margins: Array, labels: Array, threshold: float) -> float:
    """Share of choices that come out right as win, tie (|margin| at most the threshold) or loss."""
    truth = np.where(labels > TIE[1], 1, np.where(labels < TIE[0], -1, 0))
    return float(np.mean(np.where(np.abs(margins) <= threshold, 0, np.sign(margins)) == truth))


def fit_tie_threshold(margins: Array, labels: Array) -> float:
    """The threshold of |margin| under which calling a tie is right most often; 0 where ties never pay."""
    tried = np.concatenate([[0.0], np.quantile(np.abs(margins), np.linspace(0.01, 0.9, 60))])
    return float(tried[int(np.argmax([three_way(margins, labels, t) for t in tried]))])


def calibration(judge: RewardModel, records: Sequence[PreferenceRecord], seed: int = 0) -> dict[str, Any]:
    """Calibration figures, fitted on one random half of the prompts and reported on the other.

    Returns:
        ece, ece_scaled (after the temperature), temperature, tie_threshold, three_way (accuracy with that threshold),
        share_of_ties, disagreement, answer_mass, num_fitted, num_reported.

    Raises:
        InputError: fewer than two prompts, or a half without choices.
    """
    prompts = sorted({r.prompt for r in records})
    if len(prompts) < 2:
        raise InputError("calibration is fitted on some prompts and reported on others; there is one prompt only")
    order = stream(seed, "calibration").permutation(len(prompts))
    half = {prompts[int(i)] for i in order[: len(prompts) // 2]}
    fit, test = (ask(judge, [r for r in records if (r.prompt in half) == mine]) for mine in (True, False))
    temperature, threshold = fit_temperature(fit.margins, fit.labels), fit_tie_threshold(fit.margins, fit.labels)
    ties = (test.labels >= TIE[0]) & (test.labels <= TIE[1])
    swaps = test.disagreement
    return {
        "ece": expected_calibration_error(expit(test.margins), test.labels),
        "ece_scaled": expected_calibration_error(expit(test.margins / temperature), test.labels),
        "temperature": temperature,
        "tie_threshold": threshold,
        "three_way": three_way(test.margins, test.labels, threshold),
        "share_of_ties": float(ties.mean()),
        "disagreement": None if np.isnan(swaps).all() else float(np.nanmean(swaps)),
        "answer_mass": float(test.mass.mean()),
        "num_fitted": len(fit.labels),
        "num_reported": len(test.labels),
    }
