"""Margins against fixed references: a judge that knows the truth orders all, a blind one nothing."""

import numpy as np
import pytest
import torch

from rewarddance.core.media import Media
from rewarddance.core.types import Verdict
from rewarddance.reward.measure import measure_margins


class Brightness:
    """Prefers the brighter picture, or (sign 0) nothing."""

    def __init__(self, sign):
        self.sign = sign

    def judge(self, comparisons):
        gaps = [float(c.candidate.frames.mean() - c.reference.frames.mean()) for c in comparisons]
        return Verdict.from_margin(self.sign * torch.tensor(gaps))


def grey(value):
    return Media.from_tensor(torch.full((3, 4, 4), value))


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    truth = rng.random((6, 5))
    candidates = [[grey(float(v)) for v in row] for row in truth]
    references = [[grey(0.5), grey(0.3)]] * 6
    return [f"prompt {i}" for i in range(6)], candidates, references, truth


@pytest.mark.parametrize("sign", [1, -1])
def test_a_judge_that_knows_the_truth_orders_everything(sets, sign):
    found = measure_margins(Brightness(sign), *sets)
    assert found["pooled"] == pytest.approx(sign)
    assert found["within"] == pytest.approx(sign)
    assert found["num_within"] == 6


def test_a_blind_judge_orders_nothing(sets):
    found = measure_margins(Brightness(0), *sets)
    assert found["pooled"] == found["within"] == 0


def test_prompts_whose_truth_does_not_vary_are_left_out_of_the_mean_within(sets):
    prompts, candidates, references, truth = sets
    truth = truth.copy()
    truth[0] = 0.5
    assert measure_margins(Brightness(1), prompts, candidates, references, truth)["num_within"] == 5
