"""Intervals and tests of clustered votes: textbook values where votes are independent, and simulated null studies."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from rewarddance.core.statistics import wilson
from rewarddance.evaluate.ab import Ballot, ratings
from rewarddance.evaluate.clusters import (
    MIN_CLUSTERS,
    MIN_EFFECTIVE,
    Spread,
    cluster_interval,
    clustered_sign_test,
    clustered_wilson,
    coarsest,
    percentiles,
)


def names(kind, numbers):
    return [f"{kind}{i}" for i in numbers]


SINGLE = names("p", range(40)), names("h", range(40))
"""Clusters of 40 votes, each by another person on another prompt."""


@pytest.mark.parametrize("wins", [0, 13, 20, 40])
def test_one_vote_a_prompt_and_person_gives_the_textbook_values(wins):
    values = [1.0] * wins + [0.0] * (40 - wins)
    for clusters in ((SINGLE[0],), SINGLE):
        textbook = binomtest(wins, 40)
        ends = textbook.proportion_ci(method="wilson")
        assert clustered_wilson(values, *clusters) == pytest.approx((ends.low, ends.high), abs=1e-8)
        assert clustered_sign_test(values, *clusters) == pytest.approx(textbook.pvalue)


def test_ties_count_half_in_the_interval_and_not_in_the_test():
    values = [1.0] * 20 + [0.0] * 6 + [0.5] * 14
    assert clustered_wilson(values, *SINGLE) == pytest.approx(wilson(27 / 40, 40), abs=1e-8)
    assert clustered_sign_test(values, *SINGLE) == pytest.approx(binomtest(20, 26).pvalue)
    assert clustered_sign_test([0.5] * 40, *SINGLE) == 1.0


def test_the_bootstrap_of_single_votes_has_the_textbook_error():
    """The pigeonhole bootstrap of single votes would be about 1.7 times as wide."""
    values = [1.0] * 240 + [0.0] * 160
    clusters = names("p", range(400)), names("h", range(400))
    low, high = cluster_interval(values, *clusters)
    assert (high - low) / (2 * norm.isf(0.025)) == pytest.approx(np.sqrt(0.24 / 400), rel=0.08)


def test_votes_that_repeat_their_cluster_count_once():
    """Five equal votes on each of 40 prompts are 40 votes."""
    single = [1.0] * 27 + [0.0] * 13
    values, prompts = np.repeat(single, 5), np.repeat(SINGLE[0], 5)
    assert clustered_wilson(values, prompts) == pytest.approx(wilson(27 / 40, 40), abs=1e-8)
    assert clustered_sign_test(values, prompts) == pytest.approx(binomtest(27, 40).pvalue)
    people = np.tile(names("h", range(5)), 40)
    assert clustered_wilson(values, people, prompts) is None  # five people
    own = [f"{p}-{i % 5}" for i, p in enumerate(prompts)]  # every vote by another person: prompts alone count
    assert clustered_wilson(values, prompts, own) == pytest.approx(wilson(27 / 40, 40), abs=1e-8)
    low, high = cluster_interval(values, prompts, own)
    assert (low, high) == pytest.approx(cluster_interval(values, prompts), abs=0.02)


def test_people_who_all_agree_count_as_one_vote_each():
    prompts, people = np.repeat(names("p", range(30)), 8), np.tile(names("h", range(8)), 30)
    assert Spread.of([1.0] * 240, [prompts, people]).design_effect(0.5) == pytest.approx(30)
    assert clustered_wilson([1.0] * 240, prompts, people) == pytest.approx(wilson(1.0, 8), abs=1e-8)
    assert clustered_sign_test([1.0] * 240, prompts, people) == pytest.approx(2 / 2**8)
    assert Spread.of([0.5] * 240, [prompts, people]).design_effect(0.5) == 30


def test_the_design_effect_is_that_of_the_sums_of_clusters():
    rng = np.random.default_rng(0)
    values, prompts, people = rng.random(90), rng.integers(12, size=90), rng.integers(9, size=90)
    cells = list(zip(prompts, people, strict=True))

    def squares(keys, centre):
        sums = Counter()
        for key, value in zip(keys, values, strict=True):
            sums[key] += value - centre
        return sum(s**2 for s in sums.values())

    at, mean = ([squares(keys, m) for keys in (prompts, people, cells)] for m in (0.2, values.mean()))
    shift = max(a - b for a, b in zip(at, mean, strict=True))
    expected = max(mean[0] + mean[1] - mean[2] + shift, *at) / ((values - 0.2) ** 2).sum()
    assert expected > 1.5
    assert Spread.of(values, [names("p", prompts), names("h", people)]).design_effect(0.2) == pytest.approx(expected)


def test_only_ways_that_are_not_finer_than_another_are_resampled():
    prompts, people = names("p", range(12)), names("h", [0, 1, 2] * 4)
    assert [int(i.max()) + 1 for i in coarsest([prompts, people])] == [3]  # one vote a prompt: people hold prompts
    assert [int(i.max()) + 1 for i in coarsest([people, prompts])] == [3]
    assert len(coarsest([SINGLE[0], SINGLE[1]])) == 1
    crossed = names("p", [0, 0, 1, 1]), names("h", [0, 1, 0, 1])
    assert len(coarsest(crossed)) == 2


def test_percentiles_widen_for_few_clusters():
    assert percentiles(100_000) == pytest.approx((2.5, 97.5), abs=0.01)
    assert percentiles(10) == pytest.approx((0.858, 99.142), abs=0.01)  # Phi(-sqrt(10/9) 2.262)


def test_too_few_clusters_have_no_figure():
    values, prompts = [1.0, 0.0] * 45, names("p", range(90))
    for num, bootstrap, effective in ((MIN_CLUSTERS, True, True), (9, False, True), (5, False, False)):
        people = names("h", [i % num for i in range(90)])
        assert (cluster_interval(values, prompts, people) is not None) == bootstrap
        assert (clustered_wilson(values, prompts, people) is not None) == effective
        assert (clustered_sign_test(values, prompts, people) is not None) == effective
    assert MIN_EFFECTIVE == 6


def test_a_person_who_only_ties_does_not_count_for_the_sign_test():
    """Five people who all lean to one side do so by chance in one study of 16."""
    votes = [(float(i % 5 != 0), f"p{i}", f"h{k}") for i in range(100) for k in range(5)]
    votes += [(0.5, f"p{i}", "h5") for i in range(100)]
    values, prompts, people = zip(*votes, strict=True)
    assert clustered_sign_test(values, prompts, people) is None
    assert clustered_sign_test([0.5] * len(values), prompts, people) == 1.0


NULLS = {
    "people all see all": (30, 10, 10, 0.0, 0.35),
    "six people": (40, 6, 3, 0.0, 0.45),
    "one vote a prompt": (60, 12, 1, 0.0, 0.4),
    "prompts": (40, 12, 3, 0.45, 0.0),
    "prompts and people": (30, 12, 4, 0.25, 0.25),
}
"""Prompts, people, votes on a prompt, and how far a prompt or a person leans from one half, to a random side."""


def null_study(rng, prompts, people, each, prompt_lean, person_lean):
    """Votes between equally good systems: half of all prompts and of all people in the world lean to either side."""
    leans = prompt_lean * rng.choice([-1, 1], (prompts, 1)) + person_lean * rng.choice([-1, 1], people)
    seen = np.stack([rng.choice(people, each, replace=False) for _ in range(prompts)])
    chance = np.clip(0.5 + np.take_along_axis(leans, seen, 1), 0, 1)
    values = (rng.random(chance.shape) < chance).ravel().astype(float)
    return values, names("p", np.repeat(np.arange(prompts), each)), names("h", seen.ravel())


@pytest.mark.parametrize("name", NULLS)
def test_null_studies_in_which_people_or_prompts_lean_are_called_different_in_one_of_twenty(name):
    """200 studies: the 5% are 10 of them, and 17 is the 99% point of Binomial(200, 0.05)."""
    rng = np.random.default_rng(7)
    wrong = Counter()
    for _ in range(200):
        values, *clusters = null_study(rng, *NULLS[name])
        for kind, interval in (
            ("wilson", clustered_wilson(values, *clusters)),
            ("bootstrap", cluster_interval(values, *clusters)),
            ("independent", wilson(values.mean(), len(values))),
        ):
            wrong[kind] += interval is not None and not interval[0] <= 0.5 <= interval[1]
        wrong["sign"] += clustered_sign_test(values, *clusters) < 0.05
    assert max(wrong["wilson"], wrong["bootstrap"], wrong["sign"]) <= 17, wrong
    assert wrong["independent"] > 34


def test_prompts_that_lean_do_not_mislead_figures_by_prompt():
    """Figures by prompt are about other prompts and the same people, whose tastes are one half on average."""
    rng = np.random.default_rng(8)
    wrong = 0
    for _ in range(200):
        leans = 0.3 * rng.choice([-1, 1], (40, 1)) + np.array([0.2, 0.1, -0.1, -0.2])
        values = (rng.random((40, 4)) < 0.5 + leans).ravel().astype(float)
        low, high = clustered_wilson(values, names("p", np.repeat(np.arange(40), 4)))
        wrong += not low <= 0.5 <= high
    assert wrong <= 17


def test_ratings_of_equal_systems_by_people_who_lean_cover_zero():
    """40 studies of three systems. The interval by prompt alone leaves zero out in more than a quarter."""
    rng = np.random.default_rng(9)
    wrong = Counter()
    for _ in range(40):
        leans = 0.35 * rng.choice([-1, 1], (12, 3))
        ballots = [
            Ballot(f"p{p}", f"h{h}", a, b, float(rng.random() < 0.5 + leans[h, pair]))
            for p in range(25)
            for pair, (a, b) in enumerate(("AB", "BC", "AC"))
            for h in rng.choice(12, 4, replace=False)
        ]
        for row in ratings(ballots, draws=150).values():
            wrong["two_way"] += not row["low_two_way"] <= 0 <= row["high_two_way"]
            wrong["prompt"] += not row["low"] <= 0 <= row["high"]
    assert wrong["two_way"] <= 12  # of 120, which are not independent
    assert wrong["prompt"] > 30


def test_a_clear_difference_is_found():
    rng = np.random.default_rng(10)
    found = Counter()
    for _ in range(30):
        leans = 0.3 + 0.1 * rng.choice([-1, 1], (60, 1)) + 0.05 * rng.choice([-1, 1], 10)
        values = (rng.random((60, 10)) < 0.5 + leans).ravel().astype(float)
        clusters = names("p", np.repeat(np.arange(60), 10)), names("h", np.tile(np.arange(10), 60))
        found["wilson"] += clustered_wilson(values, *clusters)[0] > 0.5
        found["bootstrap"] += cluster_interval(values, *clusters)[0] > 0.5
        found["sign"] += clustered_sign_test(values, *clusters) < 0.05
    assert min(found.values()) >= 28
