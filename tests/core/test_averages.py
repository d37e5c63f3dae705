"""The metrics of a step do not depend on how its items were split into passes."""

import numpy as np
import pytest

from rewarddance.core.averages import WeightedMeans


def test_means_and_spreads_are_those_of_the_whole():
    rewards = np.array([0.1, 0.7, 0.4, 0.9, 0.2])
    means = WeightedMeans()
    for part in (rewards[:1], rewards[1:3], rewards[3:]):
        means.add({"reward": part.mean(), "reward_std": part.std()}, len(part))
    metrics = means.all_reduce(("reward", "reward_std"))
    assert metrics["reward"] == pytest.approx(rewards.mean())
    assert metrics["reward_std"] == pytest.approx(rewards.std())


def test_a_mean_of_fewer_things_counts_by_those():
    means = WeightedMeans()
    means.add({"loss": 1.0, "accuracy": 1.0}, 4, {"accuracy": 1})
    means.add({"loss": 2.0, "accuracy": 0.0}, 4, {"accuracy": 3})
    means.add({"loss": 3.0, "accuracy": float("nan")}, 4, {"accuracy": 0})
    assert means.all_reduce(("loss", "accuracy", "never")) == {"loss": 2.0, "accuracy": 0.25, "never": None}
