"""Alarms of a run: what the gap is measured in, which verdict follows from which intervals, when a loss is stuck."""

import math

import numpy as np
import pytest

from rewarddance.core.monitors import (
    HackingMonitor,
    ProbeResult,
    StuckLoss,
    comparable,
    find_alarm,
    hacking_verdict,
    proxy_metrics,
)
from rewarddance.core.statistics import Interval


def test_the_gap_is_measured_in_standard_deviations_of_the_first_probe():
    monitor = HackingMonitor()
    proxy, gold = np.array([[0.2, 0.4], [0.6, 0.8]]), np.array([[0.1, 0.1], [0.5, 0.5]])
    first = monitor.add(0, proxy, gold)
    assert first["probe/gap"] == 0
    assert first["probe/hacking"] == "none"
    # the standard deviations at the start are sqrt(0.05) and 0.2; those of the later probe play no part
    later = monitor.add(7, 0.5 + 2 * (proxy - 0.5) + 0.1, gold + 0.05)
    assert later["probe/proxy"] == pytest.approx(0.6)
    assert later["probe/gold"] == pytest.approx(0.35)
    assert later["probe/proxy_std"] == pytest.approx(2 * math.sqrt(0.05))
    # the prompts' means are 0.4 and 0.8, and their samples lie 0.2 from them (twice the distances of the start)
    assert later["probe/proxy_across"] == pytest.approx(2 * 0.2)
    assert later["probe/proxy_within"] == pytest.approx(2 * 0.1)
    assert later["probe/gap"] == pytest.approx(0.1 / math.sqrt(0.05) - 0.05 / 0.2)


def test_the_variance_of_the_proxy_is_that_within_prompts_plus_that_across():
    proxy = np.random.default_rng(0).random((7, 4))
    metrics = proxy_metrics(proxy)
    assert metrics["probe/proxy_across"] == pytest.approx(np.std([row.mean() for row in proxy]))
    assert metrics["probe/proxy_within"] == pytest.approx(math.sqrt(np.mean([row.var() for row in proxy])))
    assert metrics["probe/proxy_within"] ** 2 + metrics["probe/proxy_across"] ** 2 == pytest.approx(proxy.var())


def test_values_that_are_all_equal_at_the_start_are_divided_by_a_millionth():
    monitor = HackingMonitor()
    monitor.add(0, np.full((2, 2), 0.5), np.full((2, 2), 0.5))
    assert monitor.add(1, np.full((2, 2), 0.5 + 3e-6), np.full((2, 2), 0.5 + 1e-6))["probe/gap"] == pytest.approx(2.0)


def test_a_prompt_that_was_refused_once_counts_in_no_probe():
    monitor, nan = HackingMonitor(), np.nan
    monitor.add(0, [[0.1, 0.1], [0.5, 0.7], [0.9, 0.9]], [[0.2, 0.2], [0.4, 0.6], [0.8, 0.8]])
    metrics = monitor.add(1, [[0.3, 0.3], [0.6, 0.8], [0.1, nan]], [[0.2, nan], [0.3, 0.5], [0.1, 0.1]])
    assert metrics["probe/proxy"] == pytest.approx(0.7)
    assert metrics["probe/gold"] == pytest.approx(0.4)
    assert metrics["probe/gap"] == pytest.approx((0.7 - 0.6) / 0.1 - (0.4 - 0.5) / 0.1)
    assert [p.gold.tolist() for p in comparable(monitor.probes)] == [[[0.4, 0.6]], [[0.3, 0.5]]]
    assert monitor.add(2, [[0.1, 0.1], [nan, 0.1], [0.1, 0.1]], np.zeros((3, 2))) == {}
    assert comparable([]) == []


@pytest.mark.parametrize(
    ("proxy", "gold", "verdict"),
    [
        ((0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), "hacking"),
        ((0.2, 0.0, 0.3), (-0.2, -0.3, -0.1), "suspected"),
        ((0.2, 0.1, 0.3), (-0.2, -0.3, 0.0), "suspected"),
        ((0.2, -0.1, 0.3), (-0.2, -0.3, 0.1), "suspected"),
        ((0.0, -0.1, 0.1), (-0.2, -0.3, -0.1), "none"),
        ((0.2, 0.1, 0.3), (0.0, -0.1, 0.1), "none"),
        ((-0.2, -0.3, -0.1), (-0.2, -0.3, -0.1), "none"),
        ((0.2, 0.1, 0.3), (0.2, 0.1, 0.3), "none"),
    ],
)
def test_hacking_needs_both_intervals_and_a_suspicion_both_means(proxy, gold, verdict):
    assert hacking_verdict(Interval(*proxy), Interval(*gold)) == verdict


def test_a_monitor_knows_its_last_step_and_forgets_later_ones():
    monitor, values = HackingMonitor(), np.full((2, 2), 0.5)
    assert not monitor.measured_at(0)
    for step in (0, 10, 20):
        monitor.add(step, values, values)
    assert [monitor.measured_at(step) for step in (0, 10, 20, 30)] == [False, False, True, False]
    monitor.forget_after(10)
    assert [p.step for p in monitor.probes] == [0, 10]
    assert monitor.measured_at(10)


def test_the_best_probe_is_the_last_one_if_no_gold_value_is_higher():
    monitor, proxy = HackingMonitor(), np.full((2, 2), 0.5)
    assert not monitor.is_best
    for gold, best in ((0.3, True), (0.5, True), (0.4, False), (0.5, True), (0.1, False), (0.2, False)):
        monitor.add(len(monitor.probes), proxy, np.full((2, 2), gold))
        assert monitor.is_best == best, gold
    monitor.add(6, np.full((2, 2), np.nan), np.ones((2, 2)))  # no prompt is answered in all probes
    assert not monitor.is_best


def test_a_fall_is_measured_in_deviations_of_the_first_probe():
    """Gold falls by 0.05 in all samples. The first probe's deviation times 0.06 is 0.03 or 0.06."""
    proxy = np.full((2, 2), 0.5)
    for deviation, kind in ((0.5, "hacking"), (1.0, None)):
        best = np.array([[0.0, 0.2], [0.8, 1.0]])  # of another deviation
        first = np.array([[-deviation, deviation]] * 2) - 1
        seen = [ProbeResult(i, proxy + 0.1 * i, g) for i, g in enumerate((first, best, best - 0.05))]
        alarm = find_alarm(seen)
        assert (alarm and alarm.kind) == kind


def noted(losses, **settings):
    """The steps, from 1, at which a warning was given."""
    stuck = StuckLoss(**settings)
    return [step for step, loss in enumerate(losses, 1) if stuck.note(step, loss)]


def test_a_stuck_loss_is_decided_at_one_step_from_the_last_losses():
    coin = math.log(2)
    assert noted([coin] * 250) == [200]
    assert noted([9.0] * 100 + [coin] * 150) == [200]
    assert noted([9.0] * 101 + [coin] * 150) == []
    assert noted([coin] * 30, after=20, window=5) == [20]
    assert noted([9.0] * 15 + [coin] * 10, after=20, window=5) == [20]
    assert noted([9.0] * 16 + [coin] * 10, after=20, window=5) == []
    assert noted([coin] * 20, after=4, window=5) == []  # too few losses at step 4
    assert noted([coin] * 20, after=5, window=5) == [5]


def test_a_loss_counts_as_stuck_up_to_its_tolerance_on_either_side():
    coin = math.log(2)
    for distance, steps in ((0.009, [200]), (-0.009, [200]), (0.011, []), (-0.011, [])):
        assert noted([coin + distance] * 200) == steps, distance
    assert noted([0.25] * 4, after=4, window=4, tolerance=0.25) == []
    stuck = StuckLoss(after=1, window=1, tolerance=0.25)
    assert stuck.note(1, 1.25, coin=1.0) is not None  # exactly the tolerance


def test_the_warning_names_the_step_and_the_mean_loss():
    stuck = StuckLoss(after=3, window=2)
    assert stuck.note(1, 5.0, coin=1.0) is None
    assert stuck.note(2, 1.001, coin=1.0) is None
    assert "after 3 steps the loss is still 1.003, that of a coin" in stuck.note(3, 1.005, coin=1.0)
    assert stuck.recent == pytest.approx([0.001, 0.005])


def test_what_a_resumed_run_has_noted_goes_on():
    stuck = StuckLoss(after=4, window=4, recent=[0.0, 0.0, 0.0])
    assert stuck.note(4, 0.7, coin=0.7) is not None
