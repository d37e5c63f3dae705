import numpy as np
import pytest
import torch

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord
from rewarddance.core.streams import stream
from rewarddance.core.types import Verdict
from rewarddance.evaluate.calibration import (
    Choices,
    calibration,
    expected_calibration_error,
    fit_calibration,
    fit_temperature,
    fit_tie_threshold,
    measured_and_calibrated,
    noise_floor,
    three_way,
)


def world(scale, num=20_000):
    """Labels that follow sigmoid(margin / scale) exactly."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 3, num)
    return margins, (rng.random(num) < 1 / (1 + np.exp(-margins / scale))).astype(float)


def test_a_calibrated_judge_has_no_error_and_temperature_one():
    margins, labels = world(1.0)
    assert expected_calibration_error(1 / (1 + np.exp(-margins)), labels) < 0.015
    assert fit_temperature(margins, labels) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("scale", [0.4, 3.0])
def test_the_temperature_is_found_and_mends_the_error(scale):
    margins, labels = world(scale)
    temperature = fit_temperature(margins, labels)
    assert temperature == pytest.approx(scale, rel=0.05)
    raw, scaled = (expected_calibration_error(1 / (1 + np.exp(-margins / t)), labels) for t in (1, temperature))
    assert scaled < 0.02 < raw


def test_the_error_of_a_constant_is_its_distance():
    assert expected_calibration_error(np.full(1000, 0.9), np.full(1000, 0.5)) == pytest.approx(0.4)


def test_the_tie_threshold_separates_ties():
    margins = np.array([-3.0, -2, -0.3, 0.1, 0.2, 2, 3] * 10)
    labels = np.array([0.0, 0, 0.5, 0.5, 0.5, 1, 1] * 10)
    threshold = fit_tie_threshold(margins, labels)
    assert 0.3 <= threshold < 2
    assert three_way(margins, labels, threshold) == 1
    assert three_way(margins, labels, 0.0) == pytest.approx(4 / 7)
    assert fit_tie_threshold(margins[labels != 0.5], labels[labels != 0.5]) < 2


class Bright:
    """Three times as sure as it should be."""

    def judge(self, comparisons):
        gaps = [c.candidate.frames.mean() - c.reference.frames.mean() for c in comparisons]
        return Verdict.from_margin(3 * 10 * torch.stack(gaps))


def records(num):
    rng = np.random.default_rng(1)
    for i in range(num):
        light = rng.random(4)
        media = tuple(Media(torch.full((1, 3, 2, 2), float(x))) for x in light)
        pairs = [(0, 1), (2, 3), (0, 3)]
        made = tuple(
            Choice(a, b, float(rng.random() < 1 / (1 + np.exp(-10 * (light[a] - light[b]))))) for a, b in pairs
        )
        yield PreferenceRecord(f"r{i}", f"prompt {i}", media, made)


def test_calibration_is_reported_on_prompts_that_it_was_not_fitted_on():
    figures = measured_and_calibrated(Bright(), list(records(600)))["calibration"]
    assert figures["temperature"] == pytest.approx(3, rel=0.2)
    assert figures["ece_scaled"] < 0.05 < figures["ece"]
    assert figures["num_fitted"] == figures["num_reported"] == 900
    with pytest.raises(InputError, match="one prompt only"):
        calibration(Choices([1.0, -1.0], [1.0, 0.0], ["a", "a"]))


def test_what_is_reported_is_never_what_was_fitted():
    """Halves of the prompts that differ: as sure as they should be, and four times as sure."""
    margins, labels = world(1.0)
    prompts = [f"prompt {i // 5}" for i in range(len(margins))]
    names = sorted(set(prompts))
    order = stream(0, "calibration").permutation(len(names))
    fitted = {names[int(i)] for i in order[: len(names) // 2]}
    shown = np.where([p in fitted for p in prompts], margins, 4 * margins)
    figures = calibration(Choices(shown.tolist(), labels.tolist(), prompts))
    assert figures["temperature"] == pytest.approx(1.0, rel=0.1)
    assert figures["ece_scaled"] == pytest.approx(figures["ece"], abs=0.02)
    assert figures["ece"] > 0.1


def test_winners_that_always_stand_first_do_not_change_the_error():
    margins, labels = world(1.0)
    won = np.where(labels == 1, margins, -margins)
    assert expected_calibration_error(1 / (1 + np.exp(-won)), np.ones_like(won)) < 0.015


def test_labels_are_the_same_ties_however_they_were_stored():
    margins, threshold = np.zeros(2), 0.1
    for kind in (np.float32, np.float64):
        assert three_way(margins, np.array([0.6, 0.4], kind).astype(float), threshold) == 1


def perfect_judges_error(p, votes, num=400):
    """Mean calibration error over simulated data sets on which P(yes) is exactly right."""
    rng = np.random.default_rng(7)
    return np.mean([expected_calibration_error(p, rng.binomial(votes, p) / votes) for _ in range(num)])


@pytest.mark.parametrize("votes", [1, 3, 4, 10])
@pytest.mark.parametrize("num", [60, 400])
def test_the_noise_floor_is_what_a_perfect_judge_shows(votes, num):
    rng = np.random.default_rng(3)
    p = 1 / (1 + np.exp(-rng.normal(0, 1.5, num)))
    labels = rng.binomial(votes, p).astype(np.float32) / np.float32(votes)  # as files keep them
    floor = noise_floor(p, labels.astype(float))
    assert floor == pytest.approx(perfect_judges_error(p, votes), rel=0.1)
    assert floor > 0


def test_more_choices_and_more_votes_have_a_lower_floor():
    rng = np.random.default_rng(0)
    p = rng.random(100)
    one, many, ten = (
        noise_floor(np.tile(p, t), rng.binomial(v, np.tile(p, t)) / v) for t, v in ((1, 1), (9, 1), (1, 10))
    )
    assert many == pytest.approx(one / 3, rel=0.2)
    assert ten == pytest.approx(one / 10**0.5, rel=0.2)


def test_labels_that_no_number_of_votes_can_have_made_count_as_single_votes():
    p = np.full(50, 0.7)
    assert noise_floor(p, np.full(50, 0.7123)) == noise_floor(p, np.ones(50))


def sure(scale, num=6000, each=3):
    """Choices of a judge that is `scale` times as sure as it should be."""
    margins, labels = world(1.0, num)
    return Choices((scale * margins).tolist(), labels.tolist(), [f"prompt {i // each}" for i in range(num)])


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_that_a_judge_keeps_brings_the_error_down_to_its_floor(scale):
    kept = fit_calibration(sure(scale))
    assert kept.temperature == pytest.approx(scale, rel=0.05)
    assert kept.num_choices == 6000
    assert kept.ece_after == pytest.approx(kept.noise_floor, abs=0.006)
    if scale != 1.0:
        assert kept.ece_after < 0.3 * kept.ece_before


def test_the_error_of_a_kept_temperature_is_cross_fitted():
    """Halves of the prompts that differ: each is scaled by what the other one needs, so the error rises."""
    choices = sure(1.0)
    first, _ = choices.halves(0)
    choices.margins = np.where(first, np.array(choices.margins), 5 * np.array(choices.margins)).tolist()
    kept = fit_calibration(choices)
    margins, labels = np.array(choices.margins), np.array(choices.labels)
    scaled = np.where(first, margins / 5, margins)
    wanted = expected_calibration_error(1 / (1 + np.exp(-scaled)), labels)
    assert kept.ece_after == pytest.approx(wanted, abs=0.01)
    assert kept.ece_after > kept.ece_before
    with pytest.raises(InputError, match="one prompt only"):
        fit_calibration(Choices([1.0, -1.0], [1.0, 0.0], ["a", "a"]))


def test_one_prompt_is_measured_but_not_calibrated():
    alone = list(records(1)) * 3
    figures = measured_and_calibrated(Bright(), alone)
    assert figures["calibration"] is None
    assert "fitted on some prompts and reported on others; there is one prompt only" in figures["no_calibration"]
    assert figures["num_pairs"] == 9
    light = [float(m.frames.mean()) for m in alone[0].media]
    right = [(light[c.first] > light[c.second]) == (c.label > 0.5) for c in alone[0].choices]
    assert figures["accuracy"] == pytest.approx(np.mean(right))
    two = measured_and_calibrated(Bright(), list(records(2)))
    assert "no_calibration" not in two
    assert two["calibration"]["num_fitted"] == two["calibration"]["num_reported"] == 3


def test_halves_share_no_prompt_and_hold_every_choice():
    choices = Choices([0.0] * 10, [1.0] * 10, list("aabbbcddde"))
    first, second = choices.halves(0)
    assert (first ^ second).all()
    names = [{p for p, taken in zip(choices.prompts, mask, strict=True) if taken} for mask in (first, second)]
    assert (len(names[0]), len(names[1])) == (2, 3)
    assert not names[0] & names[1]
    assert any((choices.halves(s)[0] != first).any() for s in range(1, 6))


def test_refused_choices_are_not_noted():
    record = next(records(1))
    table = np.array([[0, 1.0, 5, 2.0], [-1.0, 0, 5, 5], [5, 5, 0, np.nan], [-2.0, 5, np.nan, 0]])
    choices = Choices()
    choices.note(record, table, {(2, 3): "unclear"})
    assert choices.margins == [1.0, 2.0]
    assert choices.prompts == ["prompt 0"] * 2
    assert choices.labels == [record.choices[0].label, record.choices[2].label]


def test_the_error_of_two_bins_in_closed_form():
    """Both sides count: (0.2, 0), (0.4, 1) and (0.8, 1), (0.6, 0), in two bins of equal size."""
    p, labels = np.array([0.2, 0.4]), np.array([0.0, 1.0])
    wanted = (abs(0.3 - 0.5) + abs(0.7 - 0.5)) / 2
    assert expected_calibration_error(p, labels, bins=2) == pytest.approx(wanted)
    assert expected_calibration_error(p, labels) == pytest.approx((0.2 + 0.6 + 0.6 + 0.2) / 4)
