"""Cohen's kappa and Dawid and Skene's model, against known values, scikit-learn, and simulated raters."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from rewarddance.data.agreement import krippendorff
from rewarddance.data.raters import RaterModel, cohen_kappa, dawid_skene, majority


def test_kappa_of_the_textbook_table():
    """50 grants, 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: kappa is 0.4."""
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_kappa_is_scikit_learns():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    b[:120] = a[:120]
    assert cohen_kappa(a.tolist(), b.tolist()) == pytest.approx(cohen_kappa_score(a, b))


def test_kappa_without_variation_is_not_a_number():
    assert cohen_kappa([], []) is None
    assert cohen_kappa(["x"] * 3, ["x"] * 3) is None


def test_alpha_of_krippendorffs_example():
    """The reliability data of Krippendorff (2011), four observers and twelve units: nominal alpha is 0.743."""
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[float(v) for v in column if v is not None] for column in zip(*table, strict=True)]
    assert krippendorff(units).alpha == pytest.approx(0.743, abs=5e-4)
    assert krippendorff(units, "interval").alpha == pytest.approx(0.849, abs=5e-4)


def simulated(seed, num_items=150, num_raters=10, spammers=2, votes=5):
    """Items with labels of `votes` raters each; spammers always say the same, others are right in 60 to 90 per cent."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, num_items)
    skill = rng.uniform(0.6, 0.9, num_raters)
    items = []
    for t in truth:
        row = {}
        for r in rng.choice(num_raters, votes, replace=False):
            if r < spammers:
                row[f"r{r}"] = 0
            else:
                row[f"r{r}"] = int(t) if rng.random() < skill[r] else int(rng.integers(0, 3))
        items.append(row)
    return items, truth


def test_the_model_beats_the_majority_where_a_fifth_are_spammers():
    right = {"model": [], "majority": []}
    for seed in range(20):
        items, truth = simulated(seed)
        model = dawid_skene(items, 3)
        right["model"].append((model.posterior.argmax(1) == truth).mean())
        most = [majority(row, 3) for row in items]
        right["majority"].append(
            np.mean([1 / 3 if m is None else float(m == t) for m, t in zip(most, truth, strict=True)])
        )
        reliability = {name: model.reliability(name) for name in model.confusion}
        assert max(reliability["r0"], reliability["r1"]) < min(
            v for k, v in reliability.items() if k not in ("r0", "r1")
        )
    assert np.mean(right["model"]) > np.mean(right["majority"]) + 0.02
    assert sum(m > q for m, q in zip(right["model"], right["majority"], strict=True)) >= 17


def test_one_step_from_perfect_votes_is_the_closed_form():
    """Raters who agree always: the posterior is sure, and the prior is the share of each class."""
    items = [{"a": k % 2, "b": k % 2} for k in range(40)]
    model = dawid_skene(items, 2, smoothing=1e-6)
    assert (model.posterior.argmax(1) == np.arange(40) % 2).all()
    assert model.posterior.max(1).min() > 0.999
    assert model.prior == pytest.approx([0.5, 0.5])
    assert model.reliability("a") == pytest.approx(1.0, abs=1e-3)


def test_no_votes_at_all():
    assert dawid_skene([], 2).confusion == {}


def test_reliability_is_signed():
    """Youden's index of a rater who is right with probability r on two classes is 2 r - 1."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 600)
    right = {"good": 0.95, "also good": 0.9, "inverted": 0.1, "blind": 0.5}
    items = [{who: int(t if rng.random() < r else 1 - t) for who, r in right.items()} for t in truth]
    model = dawid_skene(items, 2)
    for who, r in right.items():
        assert model.reliability(who) == pytest.approx(2 * r - 1, abs=0.1), who


def test_reliability_is_the_mean_over_pairs_of_classes():
    matrix = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]])
    model = RaterModel(np.zeros((0, 3)), {"x": matrix, "never right": np.eye(3)[[1, 2, 0]]}, np.full(3, 1 / 3))
    pairs = [(0.7 - 0.1 + 0.6 - 0.2) / 2, (0.7 - 0.2 + 0.6 - 0.1) / 2, (0.6 - 0.2 + 0.6 - 0.3) / 2]
    assert model.reliability("x") == pytest.approx(sum(pairs) / 3)
    assert model.reliability("never right") == pytest.approx(-0.5)  # -1/2 for each pair: one of two labels is the other
