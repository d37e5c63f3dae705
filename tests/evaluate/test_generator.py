from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.evaluate.generator import Samples, compare, diversity, fixed_samples, levels, measure

PROMPTS = ["flat drawing of a red circle on white", "striped drawing of two blue squares on black"]


def test_equal_seeds_start_from_equal_noise(generator):
    a, b = (fixed_samples(generator, PROMPTS, 2, 2, seed=1) for _ in range(2))
    other = fixed_samples(generator, PROMPTS, 2, 2, seed=2)
    assert torch.equal(a.media[1][1].frames, b.media[1][1].frames)
    assert not torch.equal(a.media[1][1].frames, other.media[1][1].frames)
    assert len(a.media) == 2
    assert len(a.media[0]) == 2


def test_gains_by_category():
    before = np.zeros((6, 2))
    after = np.concatenate([np.full((3, 2), 0.2), np.full((3, 2), -0.1)])
    figures = compare(after, before, ["count"] * 3 + ["object"] * 3)
    assert figures["gain"]["mean"] == pytest.approx(0.05)
    assert figures["gain"]["verdict"] == "inconclusive"
    assert figures["categories"]["count"]["ci_low"] == pytest.approx(0.2)
    assert levels(after, ["count"] * 3 + ["object"] * 3)["object"].mean == pytest.approx(-0.1)


def test_diversity_is_a_mean_pairwise_distance():
    flat = [Media(torch.full((1, 3, 2, 2), v)) for v in (0.0, 0.5, 1.0)]
    samples = Samples(("p",), (tuple(flat),))
    figures = diversity(samples, lambda media: torch.stack([m.frames.mean((0, 1, 2, 3))[None] for m in media]))
    assert figures["pixel"] == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    assert figures["feature"] == pytest.approx((0.5 + 0.5 + 1.0) / 3)


def test_measure_keeps_prompts_and_noises_apart():
    samples = Samples(("a", "b"), tuple((Media(torch.zeros(1, 3, 2, 2)),) * 2 for _ in range(2)))
    task = SimpleNamespace(name="test", gold=lambda prompts, media, start: [float(p == "b") for p in prompts])
    assert measure(samples, task).tolist() == [[0, 0], [1, 1]]
    with pytest.raises(ConfigError, match="task mine: has no gold standard"):
        measure(samples, SimpleNamespace(name="mine", gold=None))
