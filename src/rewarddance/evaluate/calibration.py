"""Calibration of P(yes): calibration error, its noise floor, a temperature and a tie threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rewarddance.core.errors import InputError
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.core.statistics import fit_temperature
from rewarddance.core.streams import stream
from rewarddance.core.types import RewardModel
from rewarddance.evaluate.judge import Refused, measure_judge
from rewarddance.reward.config import Calibration
from rewarddance.reward.judge import Judge
from rewarddance.reward.wrappers import PointwiseDifference

Array = NDArray[np.float64]
TIE = (0.4 - 1e-6, 0.6 + 1e-6)
"""Labels in this range count as ties; 0.4 and 0.6 are inside, also when they were stored as fp32."""
MAX_VOTES = 20
SIMULATIONS = 200


@dataclass
class Choices:
    """Judged choices: margin, label (share of raters who prefer the candidate) and prompt of each."""

    margins: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def note(self, record: PreferenceRecord, table: Array, refused: Refused) -> None:
        """Take a record's choices from its table of margins (K, K); for `measure_judge(each=...)`."""
        for c in record.choices:
            margin = float(table[c.first, c.second])
            if not np.isnan(margin):
                self.margins.append(margin)
                self.labels.append(c.label)
                self.prompts.append(record.prompt)

    def halves(self, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Masks (N,) of the choices of two random halves of the prompts.

        Raises:
            InputError: fewer than two prompts.
        """
        prompts = sorted(set(self.prompts))
        if len(prompts) < 2:
            only = "one prompt only" if prompts else "no answered choice"
            raise InputError(f"calibration is fitted on some prompts and reported on others; there is {only}")
        order = stream(seed, "calibration").permutation(len(prompts))
        half = {prompts[int(i)] for i in order[: len(prompts) // 2]}
        first = np.array([p in half for p in self.prompts])
        return first, ~first


def expected_calibration_error(p: Array, labels: Array, bins: int = 10) -> float:
    """Mean over equally filled bins of |mean P(yes) - share preferred| (Naeini et al. 2015, adaptive bins).

    Every choice counts from both sides, so it does not matter which picture the data put first. With one side alone,
    and the winner always first, every judge would seem too cautious.

    Args:
        p: (N,) in [0, 1]; labels: (N,), the share of raters who prefer the candidate.
    """
    p, labels = np.concatenate([p, 1 - p]), np.concatenate([labels, 1 - labels])
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [abs(p[part].mean() - labels[part].mean()) * len(part) for part in parts]
    return float(np.sum(gaps) / len(p))


def noise_floor(p: Array, labels: Array, seed: int = 0) -> float:
    """The calibration error that a perfectly calibrated judge with these P(yes) would show on as many choices.

    Labels are simulated as means of binomial votes. The number of votes is the smallest that can have made the labels,
    or 1 if none below `MAX_VOTES` can.
    """
    votes = next(
        (v for v in range(1, MAX_VOTES) if np.allclose(labels * v % 1 * (1 - labels * v % 1), 0, atol=1e-4)), 1
    )
    rng = stream(seed, "noise-floor")
    drawn = rng.binomial(votes, p, size=(SIMULATIONS, len(p))) / votes
    return float(np.mean([expected_calibration_error(p, row) for row in drawn]))


def three_way(margins: Array, labels: Array, threshold: float) -> float:
    """Share of choices that come out right as win, tie (|margin| at most the threshold) or loss."""
    truth = np.where(labels > TIE[1], 1, np.where(labels < TIE[0], -1, 0))
    return float(np.mean(np.where(np.abs(margins) <= threshold, 0, np.sign(margins)) == truth))


def fit_tie_threshold(margins: Array, labels: Array) -> float:
    """The threshold of |margin| for which `three_way` is highest; 0 if no other threshold is better."""
    thresholds = np.concatenate([[0.0], np.quantile(np.abs(margins), np.linspace(0.01, 0.9, 60))])
    return float(thresholds[int(np.argmax([three_way(margins, labels, t) for t in thresholds]))])


def calibration(choices: Choices, seed: int = 0) -> dict[str, Any]:
    """Calibration figures, fitted on one random half of the prompts and reported on the other.

    Returns:
        ece; ece_scaled: after the temperature; noise_floor: of ece_scaled; temperature; tie_threshold; three_way:
        accuracy with that threshold; share_of_ties; num_fitted, num_reported: choices.

    Raises:
        InputError: fewer than two prompts.
    """
    fitted, reported = choices.halves(seed)
    margins, labels = np.array(choices.margins), np.array(choices.labels)
    temperature = fit_temperature(margins[fitted], labels[fitted])
    threshold = fit_tie_threshold(margins[fitted], labels[fitted])
    margins, labels = margins[reported], labels[reported]
    scaled = expit(margins / temperature)
    return {
        "ece": expected_calibration_error(expit(margins), labels),
        "ece_scaled": expected_calibration_error(scaled, labels),
        "noise_floor": noise_floor(scaled, labels),
        "temperature": temperature,
        "tie_threshold": threshold,
        "three_way": three_way(margins, labels, threshold),
        "share_of_ties": float(((labels >= TIE[0]) & (labels <= TIE[1])).mean()),
        "num_fitted": int(fitted.sum()),
        "num_reported": len(labels),
    }


def fit_calibration(choices: Choices, seed: int = 0) -> Calibration:
    """The temperature for a judge to keep, fitted on all choices, and its errors.

    The errors are cross-fitted: each half of the prompts is scaled by the temperature of the other half.

    Raises:
        InputError: fewer than two prompts.
    """
    halves = choices.halves(seed)
    margins, labels = np.array(choices.margins), np.array(choices.labels)
    scaled = margins.copy()
    for half, other in (halves, halves[::-1]):
        scaled[half] = margins[half] / fit_temperature(margins[other], labels[other])
    temperature = fit_temperature(margins, labels)
    return Calibration(
        temperature=temperature,
        ece_before=expected_calibration_error(expit(margins), labels),
        ece_after=expected_calibration_error(expit(scaled), labels),
        noise_floor=noise_floor(expit(margins / temperature), labels),
        num_choices=len(labels),
    )


def final_calibration(choices: Choices, refused: Mapping[str, str], num_records: int, seed: int) -> Calibration:
    """`fit_calibration` at the end of a training. If there are too few choices or prompts, `not_fitted` says why.

    Args:
        refused: the records whose pairs were refused, with a reason; num_records: all records that were asked about.
    """
    try:
        return fit_calibration(choices, seed).model_copy(update={"num_refused": len(refused)})
    except InputError as error:
        why = f"{len(refused)} of {num_records} records were refused: {next(iter(refused.values()))}" if refused else ""
        return Calibration(num_refused=len(refused), not_fitted="; ".join(filter(None, (str(error), why))))


def calibration_text(fitted: Calibration) -> str:
    """What a training says of its final temperature."""
    left_out = f"; {fitted.num_refused} refused records were left out" if fitted.num_refused else ""
    if fitted.not_fitted is not None:
        return f"no final temperature, margins stay as they are: {fitted.not_fitted}"
    return (
        f"margins divided by {fitted.temperature:.3g}, fitted on {fitted.num_choices} choices that were not "
        f"trained on: calibration error {fitted.ece_before:.3f} before, {fitted.ece_after:.3f} after "
        f"({fitted.noise_floor:.3f} is what a perfectly calibrated judge would show){left_out}"
    )


def measured_and_calibrated(judge: RewardModel, records: Sequence[PreferenceRecord]) -> dict[str, Any]:
    """`measure_judge` with `calibration` beside it; every pair is asked once.

    If calibration cannot be measured it is None, and `no_calibration` gives the reason. `pointwise` holds the figures
    of the judge's answers about single pictures, for a judge that has learnt both questions.
    """
    choices = Choices()
    figures = measure_judge(judge, records, each=choices.note)
    if isinstance(judge, Judge) and judge.spec.pointwise:
        figures["pointwise"] = measure_judge(PointwiseDifference(judge), records)
    try:
        return figures | {"calibration": calibration(choices)}
    except InputError as error:
        return figures | {"calibration": None, "no_calibration": str(error)}
