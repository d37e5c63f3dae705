"""Figures of clips: good-same-bad with a width fixed beforehand, motion from pixels, criteria and raters."""

import numpy as np
import pytest
import torch

from rewarddance.core.dynamics import MOVES, dynamic_degree, flicker
from rewarddance.core.media import Media, StoredMedia
from rewarddance.evaluate.clips import (
    clip_distance,
    clip_features,
    compare_clips,
    criteria_of,
    gold_and_criteria,
    good_same_bad,
    same_width,
)
from rewarddance.evaluate.generator import Samples, diversity, measure, right_media
from rewarddance.evaluate.metrics.table import embed
from rewarddance.jobs.load import load_task
from rewarddance.world.motion.benchmark import action_set
from rewarddance.world.motion.render import render


def test_the_width_of_same_is_a_third_of_the_differences():
    values = np.array([[0.0, 0.1], [0.5, 0.7], [0.0, 0.3], [0.2, 0.6]])
    assert same_width(values) == pytest.approx(np.quantile([0.1, 0.2, 0.3, 0.4], 1 / 3))


def test_good_same_bad_counts_pairs():
    before = np.full((4, 2), 0.5)
    after = before + np.array([[0.2, 0.2], [0.05, -0.05], [-0.2, 0.2], [0.2, 0.1]])
    figures = good_same_bad(after, before, width=0.1 + 1e-9)
    assert (figures["good"], figures["same"], figures["bad"]) == (0.5, 0.375, 0.125)
    assert figures["gsb"]["mean"] == pytest.approx((4 - 1) / 8)
    assert figures["gsb"]["ci_low"] <= 0.375 <= figures["gsb"]["ci_high"]


def test_the_dynamic_degree_is_the_change_of_the_areas_that_change_most():
    frames = torch.zeros(3, 3, 12, 12)
    frames[1:, :, :6] = 1.0  # half of the picture changes once
    assert dynamic_degree(frames) == pytest.approx((1 + 0) / 2)
    frames = torch.zeros(3, 3, 12, 12)
    frames[1, :, 6, 6] = 1.0  # one pixel goes and comes back; 9 windows of 100 have a ninth of it
    assert dynamic_degree(frames) == pytest.approx(1 / 9)
    assert dynamic_degree(frames[:1]) == 0


def test_flicker_is_the_distance_from_the_mean_of_the_neighbours():
    ramp = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 4, 4)
    assert flicker(ramp) == pytest.approx(0, abs=1e-6)
    flash = torch.zeros(5, 3, 4, 4)
    flash[2] = 0.6
    assert flicker(flash) == pytest.approx((0.3 + 0.6 + 0.3) / 3)
    assert flicker(flash[:2]) == 0


def test_development_clips_move_where_their_prompts_say_so():
    for name in ("t2v-dev", "i2v-dev"):
        for prompt in action_set(name):
            frames = torch.from_numpy(render(prompt.scene)).permute(0, 3, 1, 2).float() / 255
            still = "still" in prompt.text and " and " not in prompt.text
            noise = 0.01 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
            assert (dynamic_degree(frames) > MOVES) != still, prompt.text
            assert (dynamic_degree((frames + noise).clamp(0, 1)) > MOVES) != still, prompt.text


def test_right_clips_beat_frozen_ones_in_every_figure():
    task = load_task("embedded-video")
    prompts = [p for p in task.benchmark() if "still" not in p.text][:4]
    right = task.reference_pictures([p.text for p in prompts], 2, seed=0)
    frozen = right[:, :1].expand_as(right)

    def samples(pixels):
        stored = (pixels * 255).round().to(torch.uint8)
        return Samples(tuple(prompts), tuple(StoredMedia(x, 8.0) for x in torch.split(stored, 2)))

    after, before = samples(right), samples(frozen)
    values = {"after": criteria_of(after, task), "before": criteria_of(before, task)}
    assert np.array_equal(values["after"]["overall"], measure(after, task))
    gold, parts = gold_and_criteria(after, task)
    assert parts.keys() == values["after"].keys()
    np.testing.assert_array_equal(gold, values["after"]["overall"])
    figures = compare_clips(after, before, values, 0.05, task.rate)
    assert set(figures["criteria"]) == {"fidelity", "motion", "consistency", "overall"}
    assert figures["criteria"]["motion"]["gain"]["ci_low"] > 0.5
    assert figures["good_same_bad"]["gsb"]["mean"] == 1
    assert figures["moving"]["before"]["mean"] == 0
    assert figures["moving"]["after"]["mean"] == 1
    assert figures["dynamic_degree"]["gain"]["ci_low"] > 0
    assert figures["alignment"]["after"]["mean"] > 1.7 > 1 > figures["alignment"]["before"]["mean"]


def test_a_picture_has_a_gold_value_without_parts():
    task = load_task("embedded")
    prompts = task.benchmark()[:2]
    samples = Samples(prompts, tuple([picture] for picture in right_media(task, prompts, 1, 0)))
    gold, parts = gold_and_criteria(samples, task)
    assert (gold.tolist(), parts) == ([[1.0], [1.0]], {})


def test_the_distance_of_still_clips_is_that_of_their_brightness_in_closed_form():
    """Five equal frames have one direction of features, so both covariances are singular."""

    def clips(*values):
        return [Media(torch.full((9, 3, 4, 4), v), 8.0) for v in values]

    of = clip_features(lambda media: torch.stack([m.frames[0, :1].mean((1, 2)) for m in media]))
    near, far = clips(0.2, 0.4), clips(0.5, 0.9)  # means 0.3 and 0.7, variances 0.02 and 0.08
    samples = Samples(("a", "b"), (near[:1], near[1:]))
    assert clip_distance(samples, embed(of, far), of) == pytest.approx(0.4**2 + (0.08**0.5 - 0.02**0.5) ** 2, rel=1e-5)
    assert clip_distance(samples, embed(of, near), of) == pytest.approx(0, abs=1e-9)


def test_features_of_clips_see_motion_and_pictures_keep_theirs():
    def features(media):
        return torch.stack([m.frames[0].mean((1, 2)) for m in media])

    still, moving = torch.zeros(9, 3, 4, 4), torch.zeros(9, 3, 4, 4)
    moving[8] = 1.0
    of = clip_features(features)
    a, b = of([Media(still, 8.0), Media(moving, 8.0)])
    assert len(a) == 5 * 3
    assert (a - b).norm() == pytest.approx((3 / 5) ** 0.5)
    assert torch.equal(of([Media(still[:1])]), torch.zeros(1, 3))
    spread = diversity(Samples(("p",), ((Media(still, 8.0), Media(moving, 8.0)),)), of)
    assert spread["feature"] == pytest.approx((3 / 5) ** 0.5)
    assert spread["pixel"] == pytest.approx((1 / 9) ** 0.5)
