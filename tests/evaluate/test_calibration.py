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
    fit_temperature,
    fit_tie_threshold,
    measured_and_calibrated,
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
    found = fit_temperature(margins, labels)
    assert found == pytest.approx(scale, rel=0.05)
    raw, scaled = (expected_calibration_error(1 / (1 + np.exp(-margins / t)), labels) for t in (1, found))
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
    found = measured_and_calibrated(Bright(), list(records(600)))["calibration"]
    assert found["temperature"] == pytest.approx(3, rel=0.2)
    assert found["ece_scaled"] < 0.05 < found["ece"]
    assert found["num_fitted"] == found["num_reported"] == 900
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
    found = calibration(Choices(shown.tolist(), labels.tolist(), prompts))
    assert found["temperature"] == pytest.approx(1.0, rel=0.1)
    assert found["ece_scaled"] == pytest.approx(found["ece"], abs=0.02)
    assert found["ece"] > 0.1


def test_winners_that_always_stand_first_do_not_change_the_error():
    margins, labels = world(1.0)
    won = np.where(labels == 1, margins, -margins)
    assert expected_calibration_error(1 / (1 + np.exp(-won)), np.ones_like(won)) < 0.015


def test_labels_are_the_same_ties_however_they_were_stored():
    margins, threshold = np.zeros(2), 0.1
    for kind in (np.float32, np.float64):
        assert three_way(margins, np.array([0.6, 0.4], kind).astype(float), threshold) == 1
