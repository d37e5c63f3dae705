"""Does P(yes) mean what it says? Calibration error, a temperature and a tie threshold.

Fitted on one half of the prompts and reported on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rewarddance.core.errors import InputError
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.streams import stream
from rewarddance.core.types import RewardModel
from rewarddance.reward.measure import measure_judge

Array = NDArray[np.float64]


@dataclass
class Choices:
    """Judged choices: margin, label (share of raters who prefer the candidate) and prompt of each."""

    margins: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def note(self, record: PreferenceRecord, table: Array) -> None:
        """Take a record's choices from its table of margins (K, K); for `measure_judge(each=...)`."""
        for c in record.choices:
            self.margins.append(float(table[c.first, c.second]))
            self.labels.append(c.label)
            self.prompts.append(record.prompt)


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


def calibration(choices: Choices, seed: int = 0) -> dict[str, Any]:
    """Calibration figures, fitted on one random half of the prompts and reported on the other.

    Returns:
        ece, ece_scaled (after the temperature), temperature, tie_threshold, three_way (accuracy with that threshold),
        share_of_ties, num_fitted, num_reported.

    Raises:
        InputError: fewer than two prompts, or a half without choices.
    """
    prompts = sorted(set(choices.prompts))
    if len(prompts) < 2:
        raise InputError("calibration is fitted on some prompts and reported on others; there is one prompt only")
    order = stream(seed, "calibration").permutation(len(prompts))
    half = {prompts[int(i)] for i in order[: len(prompts) // 2]}
    fits = np.array([p in half for p in choices.prompts])
    margins, labels = np.array(choices.margins), np.array(choices.labels)
    temperature = fit_temperature(margins[fits], labels[fits])
    threshold = fit_tie_threshold(margins[fits], labels[fits])
    margins, labels = margins[~fits], labels[~fits]
    return {
        "ece": expected_calibration_error(expit(margins), labels),
        "ece_scaled": expected_calibration_error(expit(margins / temperature), labels),
        "temperature": temperature,
        "tie_threshold": threshold,
        "three_way": three_way(margins, labels, threshold),
        "share_of_ties": float(((labels >= TIE[0]) & (labels <= TIE[1])).mean()),
        "num_fitted": int(fits.sum()),
        "num_reported": len(labels),
    }


def measured_and_calibrated(judge: RewardModel, records: Sequence[PreferenceRecord]) -> dict[str, Any]:
    """`measure_judge` with `calibration` beside it, each pair asked once."""
    choices = Choices()
    found = measure_judge(judge, records, each=choices.note)
    return found | {"calibration": calibration(choices)}
