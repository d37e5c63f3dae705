"""Statistics of A/B studies against closed forms, independent implementations and simulated studies."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from rewarddance.core.errors import InputError
from rewarddance.core.statistics import bradley_terry, wilson
from rewarddance.data.agreement import elo_ratings
from rewarddance.evaluate.ab import Ballot, by_category, compare, needed, ratings, report, sign_test, visible
from rewarddance.evaluate.clusters import MIN_CLUSTERS, cluster_interval
from rewarddance.evaluate.sequences import confidence_sequence, look, looks, refuted, units


def test_the_figures_of_a_small_study():
    values = [1, 1, 1, 0.5, 0, 1]
    ballots = [Ballot(f"p{i // 2}", f"h{i % 2}", "A", "B", v) for i, v in enumerate(values)]
    ballots.append(Ballot("p9", "h0", "B", "A", 1.0))  # a vote for B, written from the other side
    out = compare(ballots, "A", "B")
    assert (out["good"], out["same"], out["bad"]) == (4, 1, 2)
    assert out["gsb"]["mean"] == pytest.approx(2 / 7)
    assert out["win_rate"]["mean"] == pytest.approx(4.5 / 7)
    assert out["sign_test"] == {"for": 2, "against": 1, "even": 1, "p": 1.0, "p_two_way": None}
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
    values, people = np.repeat(means, 10), np.tile(list("abcdefghij"), 400)
    wide = cluster_interval(values, np.repeat(np.arange(400).astype(str), 10), people)
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


def test_few_clusters_have_no_bootstrap_interval():
    prompts = [f"p{i % 9}" for i in range(90)]
    values = [float(i % 3 == 0) for i in range(90)]
    assert MIN_CLUSTERS == 10
    assert cluster_interval(values, prompts) is None
    people = [f"h{i % 2}" for i in range(90)]
    many = [f"p{i}" for i in range(90)]
    assert cluster_interval(values, many) is not None
    assert cluster_interval(values, many, people) is None  # two people say nothing about other people


@pytest.mark.parametrize("value", [1.0, 0.5, 0.0])
def test_votes_that_all_agree_have_wilsons_interval_over_prompts(value):
    """The bootstrap would give an interval of width 0."""
    prompts = [f"p{i // 3}" for i in range(60)]
    low, high = cluster_interval([value] * 60, prompts)
    assert (low, high) == pytest.approx(wilson(value, 20))
    assert high - low > 0.15


def test_a_category_of_one_prompt_has_figures_but_no_interval():
    ballots = [Ballot(f"p{i}", f"h{i % 12}", "A", "B", float(i % 4 > 0), "many") for i in range(48)]
    ballots += [Ballot("q", "h0", "A", "B", 1.0, "one"), Ballot("q", "h1", "A", "B", 1.0, "one")]
    out = by_category(ballots, "A", "B")
    assert out["one"]["win_rate"]["mean"] == 1.0
    assert [out["one"]["win_rate"][k] for k in ("low", "high", "low_two_way", "high_two_way")] == [None] * 4
    assert (out["one"]["gsb"]["low"], out["one"]["gsb"]["high"]) == (None, None)
    assert (out["one"]["win_rate"]["wilson_low"], out["one"]["win_rate"]["wilson_high_two_way"]) == (None, None)
    assert out["one"]["sign_test"]["p_two_way"] is None
    rate = out["many"]["win_rate"]
    assert rate["low"] < 0.75 < rate["high"]
    assert rate["low_two_way"] < 0.75 < rate["high_two_way"]
    assert (rate["wilson_low"], rate["wilson_high"]) == pytest.approx(wilson(0.75, 48))
    assert rate["wilson_low_two_way"] < 0.75 < rate["wilson_high_two_way"]
    assert out["many"]["gsb"]["low"] == pytest.approx(2 * rate["low"] - 1)


def test_ratings_of_few_prompts_or_of_votes_that_all_agree_have_no_interval():
    few = [Ballot(f"p{i}", "h", a, b, float(i % 2)) for i in range(9) for a, b in ("AB", "BC", "AC")]
    assert all((r["low"], r["high"]) == (None, None) for r in ratings(few, draws=20).values())
    same = [Ballot(f"p{i}", "h", a, b, 1.0) for i in range(20) for a, b in ("AB", "BC", "AC")]
    out = ratings(same, draws=20)
    assert list(out) == ["A", "B", "C"]
    assert all((r["low"], r["high"]) == (None, None) for r in out.values())


def test_ratings_by_people_of_different_taste_have_a_wider_interval_by_person():
    """Six people like A, six like B. Other prompts would give the same result, and other people would not."""
    pairs = [("A", "B"), ("B", "C"), ("A", "C")]
    ballots = []
    for p in range(60):
        for h in range(12):
            scores = {"A": float(h < 6), "B": float(h >= 6), "C": -1.0}
            ballots += [Ballot(f"p{p}", f"h{h}", a, b, float(scores[a] > scores[b])) for a, b in pairs]
    out = ratings(ballots, draws=100)
    assert out["A"]["elo"] == pytest.approx(out["B"]["elo"], abs=1e-3)
    assert out["A"]["low"] is None  # every prompt has the same votes
    assert out["A"]["high_two_way"] - out["A"]["low_two_way"] > 100
    few = ratings([v for v in ballots if v.annotator in ("h0", "h11")], draws=20)
    assert few["A"]["low_two_way"] is None


def test_bradley_terry_is_the_mm_fit():
    wins = {("a", "b"): 7, ("b", "a"): 3, ("b", "c"): 6.5, ("c", "b"): 3.5, ("a", "c"): 8, ("c", "a"): 2}
    table = np.zeros((3, 3))
    for (w, l), num in wins.items():
        table["abc".index(w), "abc".index(l)] = num
    theirs = elo_ratings(wins, prior=0.0)
    assert bradley_terry(table) == pytest.approx([theirs[s] for s in "abc"], abs=1e-4)


def test_two_systems_have_the_closed_form_of_bradley_terry():
    assert np.diff(bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]])))[0] == pytest.approx(-400 * np.log10(3))


def test_ratings_of_three_systems_recover_the_truth():
    rng = np.random.default_rng(2)
    truth = {"A": 120.0, "B": 0.0, "C": -120.0}
    ballots = []
    for p in range(400):
        for a, b in (("A", "B"), ("B", "C"), ("A", "C")):
            win = 1 / (1 + 10 ** ((truth[b] - truth[a]) / 400))
            ballots.append(Ballot(f"p{p}", f"h{p % 12}", a, b, float(rng.random() < win)))
    out = ratings(ballots, draws=100)
    assert list(out) == ["A", "B", "C"]
    for name, row in out.items():
        assert row["low"] <= truth[name] <= row["high"]
        assert row["high"] - row["low"] < 80
        assert row["low_two_way"] <= truth[name] <= row["high_two_way"]
        assert row["high_two_way"] - row["low_two_way"] > 0.9 * (row["high"] - row["low"])
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
    for per_prompt in (2, 5):  # votes on one prompt count less, here as in `needed`
        votes = needed(0.6, per_prompt=per_prompt)
        assert visible(votes, per_prompt=per_prompt) == pytest.approx(0.6, abs=0.003)
        assert visible(votes, per_prompt=per_prompt) > visible(votes)
    assert visible(5) is None  # five wins of five have p = 0.0625
    assert visible(6) < 1
    assert visible(0) is None
    with pytest.raises(InputError):
        needed(0.5)


def level_ballots(rng, prompts, per_prompt, systems="AB"):
    """Votes between level systems that agree within a prompt, prompt by prompt."""
    ballots = []
    for pair, (a, b) in enumerate(combinations(systems, 2)):
        own = np.clip(0.5 + 0.3 * rng.choice([-1, 1], (prompts, 1)), 0, 1)
        votes = np.where(rng.random((prompts, per_prompt)) < 0.15, 0.5, rng.random((prompts, per_prompt)) < own)
        for i, row in enumerate(votes.tolist()):
            ballots += [Ballot(f"{i}", f"h{k}", a, b, v, order=i + pair / 10 + k / 100) for k, v in enumerate(row)]
    return ballots


def test_a_look_decides_as_soon_as_any_earlier_look_did_and_keeps_its_verdict():
    """So one look at the end of a simulated study tells whether a look after any vote called it decided."""
    rng = np.random.default_rng(5)
    verdicts = set()
    for rate in (0.5, 0.85, 0.15):
        votes = (rng.random(60) < rate).astype(float)
        ballots = [Ballot(f"{i}", "h", "A", "B", v, order=i) for i, v in enumerate(votes)]
        seen = [look(ballots[:n], "A", "B", 1)["verdict"] for n in range(61)]
        first = next((i for i, verdict in enumerate(seen) if verdict != "open"), len(seen))
        assert set(seen[first:]) == set(seen[-1:]) - {"open"}
        assert [v != "open" for v in seen[1:]] == refuted(votes).tolist()
        verdicts.add(seen[-1])
    assert {"A", "B"} <= verdicts


def test_a_verdict_names_the_system_that_won_until_then_even_where_no_mean_is_left():
    """40 wins of A and then 400 of B refute every mean; the verdict was reached by A's wins."""
    ballots = [Ballot(f"{i}", "h", "A", "B", float(i < 40), order=i) for i in range(440)]
    out = look(ballots, "A", "B", 1)
    assert out["verdict"] == "A"
    assert (out["low"], out["high"]) == (0.0, 1.0)


def test_at_most_one_null_study_in_twenty_is_called_decided_when_one_looks_after_every_vote():
    """1,000 studies of level systems, 100 prompts with 3 votes that agree within a prompt, through `look`."""
    rng = np.random.default_rng(3)
    alarms = naive = 0
    for _ in range(1000):
        ballots = level_ballots(rng, 100, 3)
        alarms += look(ballots, "A", "B", 3)["verdict"] != "open"
        means = np.array(units(ballots, "A", "B", 3))
        t = np.arange(1, 101)
        z = (np.cumsum(means) / t - 0.5) / np.sqrt(means.var() / t)
        naive += bool((np.abs(z[9:]) > 1.96).any())
    assert alarms <= 50
    assert naive > 200  # an ordinary test, looked at as often, is wrong in more than one study of five


def test_all_pairs_of_three_systems_share_the_five_per_cent():
    """300 studies of three level systems: any pair is called decided in at most 5 per cent of them."""
    rng = np.random.default_rng(6)
    alarms = 0
    for _ in range(300):
        out = looks(level_ballots(rng, 60, 1, "ABC"), "ABC", 1)
        assert list(out) == [("A", "B"), ("A", "C"), ("B", "C")]
        alarms += any(row["verdict"] != "open" for row in out.values())
    assert alarms <= 15
    ballots = level_ballots(rng, 60, 1, "ABC")
    for (a, b), row in looks(ballots, "ABC", 1).items():
        assert row == look(ballots, a, b, 1, alpha=0.05 / 3)
        alone = look(ballots, a, b, 1)
        assert row["high"] - row["low"] > alone["high"] - alone["low"]


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
