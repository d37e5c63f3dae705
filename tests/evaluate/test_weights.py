"""Weights of a composite from people's choices: the fit, its intervals, and what drops and doublings change."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from rewarddance.core.errors import InputError
from rewarddance.evaluate.weights import JudgedChoices, ablation, as_weights, covers, fit_logistic, fitted_weights

TRUTH = np.array([0.5, 0.3, 0.2])
NAMES = ("fidelity", "style", "composition")


def votes(seed, num_prompts=60, pairs=6, scale=4.0, weights=TRUTH):
    """Choices of raters who weigh the parts by `weights`. Pairs of a prompt share an effect on the parts."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(num_prompts, pairs, len(weights))) + 0.5 * rng.normal(size=(num_prompts, 1, len(weights)))
    z = z.reshape(-1, len(weights))
    labels = (rng.random(len(z)) < expit(scale * z @ weights)).astype(float)
    prompts = tuple(f"p{i // pairs}" for i in range(len(z)))
    return JudgedChoices(NAMES[: len(weights)], z, labels, prompts)


def test_the_fit_is_the_likeliest_one():
    choices = votes(0)

    def loss(b):
        m = choices.z @ b
        return np.sum(np.logaddexp(0, -m) * choices.labels + np.logaddexp(0, m) * (1 - choices.labels))

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-8})
    assert fit_logistic(choices.z, choices.labels) == pytest.approx(best.x, rel=5e-3)
    # a count of 2 is the same as the row twice
    counts = np.where(np.arange(len(choices.z)) < 30, 2.0, 1.0)
    twice = np.concatenate([choices.z, choices.z[:30]]), np.concatenate([choices.labels, choices.labels[:30]])
    assert fit_logistic(choices.z, choices.labels, counts) == pytest.approx(fit_logistic(*twice), rel=1e-6)
    # turning a pair around changes nothing
    assert fit_logistic(-choices.z, 1 - choices.labels) == pytest.approx(fit_logistic(choices.z, choices.labels))


def test_separable_choices_give_finite_coefficients():
    z = np.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [-3.0, 0.0]])
    b = fit_logistic(z, (z[:, 0] > 0).astype(float))
    assert np.isfinite(b).all()
    assert b[0] > 3
    assert b[1] == 0


def test_intervals_cover_the_true_weights():
    covered = np.array(
        [
            [covers(f["weight_ci"], t) for f, t in zip(fitted_weights(votes(s), num=120).values(), TRUTH, strict=True)]
            for s in range(60)
        ]
    )
    # 180 intervals of nominal 95%: a share of 0.90 is three deviations below
    assert 0.90 <= covered.mean() <= 0.995


def test_weights_are_zero_or_more_and_sum_to_one():
    assert as_weights(np.array([2.0, -1.0, 6.0])).tolist() == [0.25, 0.0, 0.75]
    assert np.isnan(as_weights(np.array([-2.0, -1.0]))).all()
    choices = votes(1)
    wrong = JudgedChoices(
        choices.names, -np.abs(choices.z) * (2 * choices.labels[:, None] - 1), choices.labels, choices.prompts
    )
    with pytest.raises(InputError, match="no part orders pictures as people do"):
        fitted_weights(wrong, num=5)


def test_dropping_a_useless_part_changes_nothing():
    choices = votes(2)
    useless = JudgedChoices((*NAMES, "useless"), np.pad(choices.z, ((0, 0), (0, 1))), choices.labels, choices.prompts)
    weights = dict(zip(useless.names, (0.4, 0.3, 0.2, 0.1), strict=True))
    rows = {(r["change"], r["part"]): r for r in ablation(useless, weights)}
    dropped = rows["drop", "useless"]
    assert dropped["weights"] == pytest.approx({"fidelity": 4 / 9, "style": 3 / 9, "composition": 2 / 9, "useless": 0})
    assert dropped["accuracy_change"] == 0
    assert dropped["accuracy_change_ci"] == [0, 0]
    assert dropped["log_loss_change"] == pytest.approx(0, abs=1e-6)
    assert rows["double", "useless"]["accuracy_change"] == 0
    assert fitted_weights(useless, num=20)["useless"]["weight"] == pytest.approx(0, abs=1e-9)
    # a part that matters is missed
    assert rows["drop", "fidelity"]["accuracy_change_ci"][1] < 0


def test_the_change_is_the_difference_of_two_accuracies():
    choices = votes(3)
    weights = dict(zip(NAMES, (0.2, 0.2, 0.6), strict=True))
    rows = {(r["change"], r["part"]): r for r in ablation(choices, weights)}
    changed = np.array([0.4, 0.2, 0.6]) / 1.2
    row, right = rows["double", "fidelity"], (choices.z @ changed > 0) == (choices.labels > 0.5)
    assert row["accuracy"] == pytest.approx(right.mean())
    before = rows["as it is", None]["accuracy"]
    assert row["accuracy_change"] == pytest.approx(right.mean() - before)
    low, high = row["accuracy_change_ci"]
    assert low <= row["accuracy_change"] <= high
    assert rows["fit", None]["log_loss_change"] < 0


def test_too_little_data_is_one_line():
    with pytest.raises(InputError, match="2 prompts with choices are too few"):
        JudgedChoices(("a",), np.ones((2, 1)), np.ones(2), ("p", "q"))
    with pytest.raises(InputError, match="all choices are ties"):
        JudgedChoices(("a",), np.ones((4, 1)), np.full(4, 0.5), tuple("pqrs"))
