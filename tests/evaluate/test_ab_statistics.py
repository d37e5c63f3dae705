"""Statistics of A/B studies against closed forms, independent implementations and simulated studies."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from rewarddance.core.errors import InputError
from rewarddance.data.agreement import elo_ratings
from rewarddance.evaluate.ab import (
    Ballot,
    cluster_interval,
    compare,
    fit_bradley_terry,
    needed,
    ratings,
    report,
    sign_test,
    visible,
    wilson,
)
from rewarddance.evaluate.sequences import confidence_sequence, look, refuted, units


def test_the_figures_of_a_small_study():
    values = [1, 1, 1, 0.5, 0, 1]
    ballots = [Ballot(f"p{i // 2}", f"h{i % 2}", "A", "B", v) for i, v in enumerate(values)]
    ballots.append(Ballot("p9", "h0", "B", "A", 1.0))  # a vote for B, written from the other side
    out = compare(ballots, "A", "B")
    assert (out["good"], out["same"], out["bad"]) == (4, 1, 2)
    assert out["gsb"]["mean"] == pytest.approx(2 / 7)
    assert out["win_rate"]["mean"] == pytest.approx(4.5 / 7)
    assert out["sign_test"] == {"for": 2, "against": 1, "even": 1, "p": 1.0}
    assert (out["prompts"], out["annotators"]) == (4, 2)
    turned = compare(ballots, "B", "A")
    assert turned["gsb"]["mean"] == pytest.approx(-2 / 7)
    with pytest.raises(InputError, match="no votes between A and C"):
        compare(ballots, "A", "C")


@pytest.mark.parametrize(("k", "n"), [(0, 10), (7, 10), (450, 1000)])
def test_wilson_is_scipys(k, n):
    theirs = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_sign_test_is_scipys():
    assert sign_test([1] * 9 + [0] * 3 + [0.5])["p"] == pytest.approx(binomtest(9, 12).pvalue)


def test_the_cluster_bootstrap_has_the_standard_error_of_cluster_means():
    rng = np.random.default_rng(0)
    means = rng.normal(0, 1, 400)
    values = np.repeat(means, 5)  # five equal votes a prompt: the units are the prompts
    low, high = cluster_interval(values, np.repeat(np.arange(400).astype(str), 5))
    assert (high - low) / (2 * 1.96) == pytest.approx(means.std() / 20, rel=0.05)
    wide = cluster_interval(values, np.repeat(np.arange(400).astype(str), 5), np.tile(list("abcde"), 400))
    assert wide[1] - wide[0] >= 0.98 * (high - low)


def test_intervals_cover_when_votes_of_a_prompt_agree():
    """By prompt the interval covers in about 95 of 100 studies; Wilson's, which ignores prompts, in far fewer."""
    rng = np.random.default_rng(1)
    covered = {"prompt": 0, "wilson": 0}
    for _ in range(100):
        own = np.clip(0.5 + 0.4 * rng.choice([-1, 1], (40, 1)), 0, 1)
        values = (rng.random((40, 8)) < own).ravel().astype(float)
        low, high = cluster_interval(values, np.repeat(np.arange(40).astype(str), 8))
        covered["prompt"] += low <= 0.5 <= high
        low, high = wilson(values.mean(), len(values))
        covered["wilson"] += low <= 0.5 <= high
    assert covered["prompt"] >= 88
    assert covered["wilson"] <= 80


def test_bradley_terry_is_the_mm_fit():
    wins = {("a", "b"): 7, ("b", "a"): 3, ("b", "c"): 6.5, ("c", "b"): 3.5, ("a", "c"): 8, ("c", "a"): 2}
    table = np.zeros((3, 3))
    for (w, l), num in wins.items():
        table["abc".index(w), "abc".index(l)] = num
    theirs = elo_ratings(wins, prior=0.0)
    assert fit_bradley_terry(table) == pytest.approx([theirs[s] for s in "abc"], abs=1e-4)


def test_two_systems_have_the_closed_form_of_bradley_terry():
    assert np.diff(fit_bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]])))[0] == pytest.approx(-400 * np.log10(3))


def test_ratings_of_three_systems_recover_the_truth():
    rng = np.random.default_rng(2)
    truth = {"A": 120.0, "B": 0.0, "C": -120.0}
    ballots = []
    for p in range(400):
        for a, b in (("A", "B"), ("B", "C"), ("A", "C")):
            win = 1 / (1 + 10 ** ((truth[b] - truth[a]) / 400))
            ballots.append(Ballot(f"p{p}", "h", a, b, float(rng.random() < win)))
    out = ratings(ballots, draws=100)
    assert list(out) == ["A", "B", "C"]
    for name, row in out.items():
        assert row["low"] <= truth[name] <= row["high"]
        assert row["high"] - row["low"] < 80
    assert set(report(ballots, ["A", "B", "C"])["ratings"]) == set("ABC")


def test_power_is_that_of_the_exact_sign_test():
    num = needed(0.55)
    approximate = ((norm.isf(0.025) * 0.5 + norm.isf(0.2) * np.sqrt(0.55 * 0.45)) / 0.05) ** 2
    assert num == pytest.approx(approximate, rel=0.06)
    wins = np.arange(num + 1)
    rejects = 2 * np.minimum(binom.cdf(wins, num, 0.5), binom.sf(wins - 1, num, 0.5)) <= 0.05
    assert binom.pmf(wins, num, 0.55)[rejects].sum() >= 0.8
    assert needed(0.55, ties=0.5) == pytest.approx(2 * num, abs=1)
    assert needed(0.55, per_prompt=3, icc=0.2) == pytest.approx(1.4 * num, abs=1)
    assert visible(num) == pytest.approx(0.55, abs=0.002)
    with pytest.raises(InputError):
        needed(0.5)


def test_at_most_one_null_study_in_twenty_is_called_decided_when_one_looks_after_every_vote():
    """1,000 studies of level systems, 100 prompts with 3 votes that agree within a prompt, a look after every vote."""
    rng = np.random.default_rng(3)
    alarms = naive = 0
    for _ in range(1000):
        own = np.clip(0.5 + 0.3 * rng.choice([-1, 1], (100, 1)), 0, 1)
        votes = np.where(rng.random((100, 3)) < 0.15, 0.5, rng.random((100, 3)) < own)
        means = votes.mean(1)
        alarms += bool(refuted(means)[-1])  # the capital only moves when a prompt is complete
        t = np.arange(1, 101)
        z = (np.cumsum(means) / t - 0.5) / np.sqrt(means.var() / t)
        naive += bool((np.abs(z[9:]) > 1.96).any())
    assert alarms <= 50
    assert naive > 200  # an ordinary test, looked at as often, is wrong in more than one study of five


def test_a_difference_is_found_and_the_sequence_closes_in():
    rng = np.random.default_rng(4)
    decided = [refuted((rng.random(400) < 0.65).astype(float))[-1] for _ in range(50)]
    assert np.mean(decided) > 0.9
    x = (rng.random(2000) < 0.65).astype(float)
    bounds = confidence_sequence(x)
    assert bounds.low[-1] <= 0.65 <= bounds.high[-1]
    assert bounds.high[-1] - bounds.low[-1] < 0.12
    assert (np.diff(bounds.low) >= 0).all()
    assert (np.diff(bounds.high) <= 0).all()


def test_a_look_counts_whole_prompts_in_the_order_of_their_completion():
    ballots = [
        Ballot("p", "x", "A", "B", 1.0, order=1),
        Ballot("q", "x", "A", "B", 0.0, order=2),
        Ballot("q", "y", "B", "A", 0.5, order=3),
        Ballot("p", "y", "A", "B", 1.0, order=4),
        Ballot("p", "z", "A", "B", 0.0, order=5),  # more than the two that count
        Ballot("r", "x", "A", "B", 1.0, order=6),
    ]
    assert units(ballots, "A", "B", 2) == [0.25, 1.0]
    assert look(ballots, "A", "B", 2)["complete"] == 2
    sure = [Ballot(f"p{i}", "x", "B", "A", 1.0, order=i) for i in range(40)]
    assert look(sure, "A", "B", 1)["verdict"] == "B"
    assert look([], "A", "B", 1) == {"complete": 0, "low": 0.0, "high": 1.0, "verdict": "open"}
