"""The weights of a composite reward: what each part is worth, and the weights that predict people's choices best.

Everything works on the parts' standardised values, which are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rewarddance.core.errors import InputError
from rewarddance.core.statistics import fit_temperature, grouped_interval
from rewarddance.core.streams import stream

Array = NDArray[np.float64]
RIDGE = 1e-4
"""Ridge penalty for each choice. It keeps coefficients finite where the parts separate all choices."""
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class JudgedChoices:
    """Choices of people between two pictures, and how a composite's parts see them.

    Attributes:
        names: of the P parts.
        z: (N, P) standardised values of the first picture less the second, after the bound.
        labels: (N,) share of people who prefer the first picture.
        prompts: of the N choices; prompts are the independent units.
    """

    names: tuple[str, ...]
    z: Array
    labels: Array
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.prompts)) < 4:
            raise InputError(f"weights: {len(set(self.prompts))} prompts with choices are too few; 4 are the least")
        if not (self.labels != 0.5).any():
            raise InputError("weights: all choices are ties; there is nothing to fit")

    @property
    def units(self) -> NDArray[np.int64]:
        """(N,) number of the prompt of every choice."""
        return np.unique(self.prompts, return_inverse=True)[1].astype(np.int64)


def fit_logistic(z: Array, labels: Array, counts: Array | None = None, steps: int = 60) -> Array:
    """Coefficients b (P,) of P(first is better) = sigmoid(z b), the likeliest ones, by Newton steps. No intercept,
    because the order of two pictures means nothing.

    Args:
        z: (N, P); labels: (N,) in [0, 1]; counts: (N,), how often each row counts.
    """
    w = np.ones(len(z)) if counts is None else counts
    ridge = RIDGE * max(w.sum(), 1.0)
    b = np.zeros(z.shape[1])
    for _ in range(steps):
        p = expit(z @ b)
        gradient = z.T @ (w * (labels - p)) - ridge * b
        hessian = (z.T * (w * p * (1 - p))) @ z + ridge * np.eye(len(b))
        step = np.linalg.solve(hessian, gradient)
        b = b + step * min(1.0, 2.0 / max(np.abs(step).max(initial=0.0), 1e-300))
        if np.abs(step).max(initial=0.0) < 1e-9:
            break
    return b


def as_weights(coefficients: Array) -> Array:
    """Weights of a composite, which are 0 or more and sum to 1; NaN where no coefficient is positive."""
    positive = np.maximum(coefficients, 0.0)
    total = positive.sum(-1, keepdims=True)
    weights: Array = np.divide(positive, total, out=np.full_like(positive, np.nan), where=total > 0)
    return weights


def fitted_weights(choices: JudgedChoices, *, num: int = NUM_RESAMPLES, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Weights that predict the choices best, with 95% intervals; whole prompts are resampled.

    Returns:
        By part: coefficient, coefficient_ci (of the logistic regression; below 0 where people prefer less of the part),
        weight, weight_ci (`as_weights`).

    Raises:
        InputError: no part predicts the choices in the right direction.
    """
    units = choices.units
    whole = fit_logistic(choices.z, choices.labels)
    weights = as_weights(whole)
    if np.isnan(weights).any():
        raise InputError("weights: no part orders pictures as people do, so no weights can be fitted")
    num_units = int(units.max()) + 1
    drawn = stream(seed, "weights").multinomial(num_units, np.full(num_units, 1 / num_units), size=num)
    fits = np.stack([fit_logistic(choices.z, choices.labels, counts[units].astype(np.float64)) for counts in drawn])
    ends = np.percentile(fits, [2.5, 97.5], axis=0)
    weight_ends = np.nanpercentile(as_weights(fits), [2.5, 97.5], axis=0)
    return {
        name: {
            "coefficient": float(whole[k]),
            "coefficient_ci": ends[:, k].tolist(),
            "weight": float(weights[k]),
            "weight_ci": weight_ends[:, k].tolist(),
        }
        for k, name in enumerate(choices.names)
    }


def ablation(choices: JudgedChoices, weights: Mapping[str, float], seed: int = 0) -> list[dict[str, Any]]:
    """Changes of the weights against the weights as they are: every part dropped, every part doubled, all fitted.

    The other weights are renormalised. The fitted weights are cross-fitted: each half of the prompts is judged by the
    weights of the other half.

    Returns:
        One row a change: change, part, weights, accuracy (share of the choices other than ties that R orders right),
        log_loss (of all choices, after one temperature is fitted), and accuracy_change, log_loss_change with their 95%
        intervals over prompts (`..._ci`).
    """
    current = np.array([weights[name] for name in choices.names])
    rows = [_row(choices, "as it is", None, current, choices.z @ current)]
    for k, name in enumerate(choices.names):
        for change, factor in (("drop", 0.0), ("double", 2.0)):
            changed = np.where(np.arange(len(current)) == k, factor * current, current)
            if not changed.any():  # the only part with a weight cannot be dropped
                continue
            changed = changed / changed.sum()
            rows.append(_row(choices, change, name, changed, choices.z @ changed))
    fitted = _cross_fitted(choices, seed)
    if fitted is not None:
        rows.append(_row(choices, "fit", None, as_weights(fit_logistic(choices.z, choices.labels)), fitted))
    right, loss = rows[0].pop("right"), rows[0].pop("losses")
    decided = [p for p, y in zip(choices.prompts, choices.labels, strict=True) if y != 0.5]
    for row in rows[1:]:
        gains = row.pop("right") - right
        row["accuracy_change"] = float(gains.mean())
        row["accuracy_change_ci"] = grouped_interval(list(zip(decided, gains.tolist(), strict=True)))
        costs = row.pop("losses") - loss
        row["log_loss_change"] = float(costs.mean())
        row["log_loss_change_ci"] = grouped_interval(list(zip(choices.prompts, costs.tolist(), strict=True)))
    return rows


def _row(choices: JudgedChoices, change: str, part: str | None, weights: Array, margins: Array) -> dict[str, Any]:
    m, y = margins, choices.labels
    decided = y != 0.5
    right = 0.5 + 0.5 * np.sign(m[decided]) * np.sign(y[decided] - 0.5)
    scaled = m / fit_temperature(m, y)
    losses = np.logaddexp(0, -scaled) * y + np.logaddexp(0, scaled) * (1 - y)
    return {
        "change": change,
        "part": part,
        "weights": dict(zip(choices.names, weights.tolist(), strict=True)),
        "accuracy": float(right.mean()),
        "log_loss": float(losses.mean()),
        "right": right,
        "losses": losses,
    }


def _cross_fitted(choices: JudgedChoices, seed: int) -> Array | None:
    """R (N,) by weights that were fitted on the other half of the prompts; None where a half gives no weights."""
    units = choices.units
    half = stream(seed, "weights-halves").permutation(int(units.max()) + 1)[units] % 2 == 0
    margins = np.zeros(len(half))
    for own in (half, ~half):
        weights = as_weights(fit_logistic(choices.z[~own], choices.labels[~own]))
        if np.isnan(weights).any():
            return None
        margins[own] = choices.z[own] @ weights
    return margins


def suggestion(fitted: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The fitted weights, rounded, for the file of the composite."""
    return {name: round(float(f["weight"]), 3) for name, f in fitted.items()}


def covers(interval: Sequence[float], value: float) -> bool:
    """Whether an interval contains a value."""
    return interval[0] <= value <= interval[1]
