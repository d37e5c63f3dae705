"""Intervals against plain loops over the same random draws, and fits against closed forms."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import binomtest, chi2, nct, norm
from scipy.stats import t as student

from rewarddance.core.statistics import (
    Interval,
    bootstrap,
    bootstrap_statistic,
    bradley_terry,
    fit_temperature,
    grouped_interval,
    half_sample_interval,
    paired_bootstrap,
    share,
    smallest_difference,
    students_interval,
    two_way_bootstrap,
    wilson,
)
from rewarddance.core.streams import stream


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.3, 1.0, shape)


def percentiles(values):
    return pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), rel=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.5, "better"),
        (-0.5, -0.1, "worse"),
        (-0.1, 0.1, "inconclusive"),
        (0.0, 0.5, "inconclusive"),
        (-0.5, 0.0, "inconclusive"),
    ],
)
def test_an_interval_that_touches_zero_is_inconclusive(low, high, verdict):
    interval = Interval((low + high) / 2, low, high)
    assert interval.verdict == verdict
    assert interval.as_dict() == {"mean": (low + high) / 2, "ci_low": low, "ci_high": high}


def test_an_interval_is_printed_with_its_signs():
    assert str(Interval(0.12345, -0.1, 0.25)) == "+0.123 [-0.100, +0.250]"


def test_a_bootstrap_resamples_the_first_axis_and_averages_the_others():
    x = numbers(7, 3, 2)
    units = [row.mean() for row in x]
    draws = stream(0, "bootstrap").integers(7, size=(2000, 7))
    interval = bootstrap(x)
    assert interval.mean == pytest.approx(x.mean())
    assert (interval.ci_low, interval.ci_high) == percentiles([np.mean([units[i] for i in d]) for d in draws])
    draws = stream(3, "bootstrap").integers(7, size=(50, 7))
    other = bootstrap(x, num=50, seed=3)
    assert (other.ci_low, other.ci_high) == percentiles([np.mean([units[i] for i in d]) for d in draws])


@pytest.mark.parametrize("function", [bootstrap, two_way_bootstrap])
@pytest.mark.parametrize("values", [np.zeros((0, 2)), np.array([[1.0, np.nan]])], ids=["none", "nan"])
def test_there_is_no_interval_of_nothing_or_of_nan(function, values):
    with pytest.raises(ValueError, match="needs values and no NaN"):
        function(values)


def test_a_paired_bootstrap_is_the_bootstrap_of_the_differences():
    after, before = numbers(9, 2), numbers(9, 2, seed=1)
    assert paired_bootstrap(after, before) == bootstrap(after - before)
    assert paired_bootstrap(after, before, num=40, seed=2) == bootstrap(after - before, num=40, seed=2)
    assert paired_bootstrap(after, before, num=40).ci_low != paired_bootstrap(after, before).ci_low
    assert paired_bootstrap([2, 3], [1, 2]).mean == 1.0


def test_a_statistic_is_computed_on_resampled_units():
    x = numbers(9)

    def ratio(units):
        return x[units].max() / np.abs(x[units]).sum()

    for settings, num, seed in (({}, 1000, 0), ({"num": 40, "seed": 2}, 40, 2)):
        draws = stream(seed, "bootstrap-statistic").integers(9, size=(num, 9))
        interval = bootstrap_statistic(ratio, 9, **settings)
        assert interval.mean == pytest.approx(x.max() / np.abs(x).sum())
        assert (interval.ci_low, interval.ci_high) == percentiles([ratio(d) for d in draws])


@pytest.mark.parametrize("num_units", [4, 9])
def test_the_error_of_half_samples(num_units):
    """Halves of m of n units have the variance s^2 (1/m - 1/n), so it is multiplied by m / (n - m) for that of n."""
    x = numbers(num_units)
    for settings, num, seed in (({}, 100, 0), ({"num": 30, "seed": 1}, 30, 1)):
        rng, m = stream(seed, "half-samples"), num_units // 2
        halves = [x[rng.permutation(num_units)[:m]].mean() for _ in range(num)]
        error = np.std(halves, ddof=1) * np.sqrt(m / (num_units - m))
        interval = half_sample_interval(lambda units: float(x[units].mean()), num_units, **settings)
        assert interval.mean == pytest.approx(x.mean())
        assert (interval.ci_low, interval.ci_high) == pytest.approx((x.mean() - 1.96 * error, x.mean() + 1.96 * error))
    with pytest.raises(ValueError, match="four units or more, got 3"):
        half_sample_interval(lambda units: 0.0, 3)


def test_students_interval_in_closed_form():
    """The 0.975 quantiles of Student's t are 12.7062 with one degree of freedom and 4.3027 with two."""
    two, three = students_interval([1.0, 3.0]), students_interval([1.0, 2.0, 3.0])
    assert two["mean"] == three["mean"] == 2.0
    assert (two["ci_low"], two["ci_high"]) == pytest.approx((2 - 12.706205, 2 + 12.706205), abs=1e-5)
    half = 4.302653 / np.sqrt(3)
    assert (three["ci_low"], three["ci_high"]) == pytest.approx((2 - half, 2 + half), abs=1e-5)


def power_at(shift, most, freedom):
    """The probability that |Z + shift| > most sqrt(V / freedom)."""

    def rejects(square):
        ratio = most * np.sqrt(square / freedom)
        return (norm.sf(ratio - shift) + norm.cdf(-ratio - shift)) * chi2.pdf(square, freedom)

    return quad(rejects, 0, np.inf)[0]


def test_a_power_little_above_alpha_needs_less_than_one_standard_error():
    values = numbers(4)
    shift = smallest_difference(values, power=0.08) / (values.std(ddof=1) / 2)
    assert 0 < shift < 1
    assert power_at(shift, student.ppf(0.975, 3), 3) == pytest.approx(0.08, abs=1e-5)


@pytest.mark.parametrize(("num", "alpha", "power"), [(3, 0.05, 0.8), (5, 0.05, 0.8), (4, 0.1, 0.9)])
def test_the_smallest_difference_has_the_power_of_the_t_test(num, alpha, power):
    """The power is the normal probability beyond t s / sigma, integrated over the chi-square of the spread s."""
    values = numbers(num)
    shift = smallest_difference(values, power, alpha) / (values.std(ddof=1) / np.sqrt(num))
    most = student.ppf(1 - alpha / 2, num - 1)

    assert power_at(shift, most, num - 1) == pytest.approx(power, abs=1e-5)
    assert nct.sf(most, num - 1, shift) == pytest.approx(power, abs=1e-4)  # the other tail has less than 1e-4


def test_the_smallest_difference_of_many_runs_is_that_of_the_normal_distribution():
    values = numbers(4000)
    error = values.std(ddof=1) / np.sqrt(4000)
    assert smallest_difference(values) == pytest.approx((norm.ppf(0.975) + norm.ppf(0.8)) * error, rel=1e-3)
    assert smallest_difference([0.1]) is None
    assert smallest_difference([0.25, 0.25]) == 0.0


def test_a_two_way_bootstrap_resamples_both_axes_independently():
    x = numbers(6, 3, 2)
    cells = x.mean(2)
    rng = stream(0, "two-way-bootstrap")
    rows, columns = rng.integers(6, size=(2000, 6)), rng.integers(3, size=(2000, 3))
    means = [np.mean([cells[i, j] for i in r for j in c]) for r, c in zip(rows, columns, strict=True)]
    interval = two_way_bootstrap(x)
    assert interval.mean == pytest.approx(x.mean())
    assert (interval.ci_low, interval.ci_high) == percentiles(means)
    assert two_way_bootstrap(x, num=30, seed=1) != two_way_bootstrap(x, num=30)


def test_groups_are_resampled_whole_and_weigh_as_many_values_as_they_have():
    names = "hgfedcbaabcdadbc"
    values = list(zip(names, numbers(len(names)).tolist(), strict=True))
    groups = {name: [v for g, v in values if g == name] for name in "abcdefgh"}
    means = []
    for draw in stream(0, "measure-judge").integers(8, size=(1000, 8)):
        drawn = [v for i in draw for v in groups["abcdefgh"[i]]]
        means.append(sum(drawn) / len(drawn))
    assert tuple(grouped_interval(values)) == percentiles(means)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 9.0])
def test_labels_that_are_exact_probabilities_give_the_temperature_back(temperature):
    margins = numbers(400) * 4
    labels = 1 / (1 + np.exp(-margins / temperature))
    assert fit_temperature(margins, labels) == pytest.approx(temperature, rel=1e-3)


def test_a_temperature_stays_within_its_bounds():
    margins = np.array([1.0, 2.0, -1.5])
    right = (margins > 0).astype(float)
    assert fit_temperature(margins, right) == pytest.approx(0.05, rel=1e-2)
    assert fit_temperature(margins, 1 - right) == pytest.approx(20.0, rel=1e-2)


@pytest.mark.parametrize(("successes", "trials"), [(0, 3), (7, 7), (31, 64), (999, 1000)])
def test_wilsons_interval_is_scipys(successes, trials):
    theirs = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes / trials, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    proportion = share(successes, trials)
    assert (proportion["share"], proportion["num"]) == (successes / trials, trials)
    assert (proportion["low"], proportion["high"]) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    theirs = binomtest(successes, trials).proportion_ci(confidence_level=0.99, method="wilson")
    assert wilson(successes / trials, trials, 0.01) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_trials_have_no_share():
    assert wilson(0.0, 0) == (0.0, 1.0)
    assert share(0, 0) == {"share": None, "low": None, "high": None, "num": 0}


def test_bradley_terry_maximises_the_likelihood():
    wins = np.random.default_rng(0).integers(1, 30, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)

    def loss(theta):
        return float((wins * np.logaddexp(0, theta[None] - theta[:, None])).sum())

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    assert bradley_terry(wins) == pytest.approx(400 / np.log(10) * (best - best.mean()), abs=1e-3)


def test_bradley_terry_of_systems_that_never_met_leaves_them_equal():
    wins = np.zeros((4, 4))
    wins[0, 1], wins[1, 0] = 3, 1
    ratings = bradley_terry(wins)
    assert ratings[0] - ratings[1] == pytest.approx(400 * np.log10(3), abs=1e-6)
    assert ratings[2:] == pytest.approx([0, 0], abs=1e-6)
