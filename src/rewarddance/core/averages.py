"""Weighted means of a step's metrics over its passes and over all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from rewarddance.core.parallel import all_reduce_sum

STD = "_std"


class WeightedMeans:
    """Means of metrics. A metric named `NAME_std` is the standard deviation around the mean of NAME; it is pooled.

    >>> means = WeightedMeans()
    >>> means.add({"reward": 0.0, "reward_std": 0.0}, 1)
    >>> means.add({"reward": 1.0, "reward_std": 0.0}, 1)
    >>> means.all_reduce(("reward", "reward_std"))
    {'reward': 0.5, 'reward_std': 0.5}
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, metrics: Mapping[str, float], weight: float, weights: Mapping[str, float] | None = None) -> None:
        """Add the metrics of one pass.

        Args:
            weight: number of items that the metrics are means of.
            weights: the number for single metrics that are means of other items. A metric with weight 0 is a mean of
                no items and is left out.
        """
        for name, value in metrics.items():
            share = (weights or {}).get(name, weight)
            if share == 0:
                continue
            if name.endswith(STD):
                value = value**2 + metrics[name.removesuffix(STD)] ** 2
            total, total_weight = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = total + share * value, total_weight + share

    def all_reduce(self, names: Sequence[str]) -> dict[str, float | None]:
        """The means over all processes; None for a metric that no process has. A collective: same names everywhere."""
        sums = torch.tensor([self.sums.get(n, (0.0, 0.0)) for n in names], dtype=torch.float64)
        totals = all_reduce_sum(sums).tolist()
        means = {n: total / weight if weight else None for n, (total, weight) in zip(names, totals, strict=True)}
        for name, mean_square in means.items():
            mean = means.get(name.removesuffix(STD))
            if name.endswith(STD) and mean_square is not None and mean is not None:
                means[name] = max(0.0, mean_square - mean**2) ** 0.5
        return means
