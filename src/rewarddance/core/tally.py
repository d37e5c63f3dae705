"""Means of a step's figures over its passes and over all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from rewarddance.core.parallel import add_up

SPREAD = "_std"


class Tally:
    """Weighted means; a figure named `NAME_std` is the spread about the mean of NAME, and is pooled as one.

    >>> tally = Tally()
    >>> tally.add({"reward": 0.0, "reward_std": 0.0}, 1)
    >>> tally.add({"reward": 1.0, "reward_std": 0.0}, 1)
    >>> tally.means(("reward", "reward_std"))
    {'reward': 0.5, 'reward_std': 0.5}
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, figures: Mapping[str, float], weight: float, own: Mapping[str, float] | None = None) -> None:
        """Figures of one pass.

        Args:
            weight: how many things they are means of.
            own: for figures that are means of other things, how many those are. What is a mean of nothing is left out.
        """
        for name, value in figures.items():
            share = (own or {}).get(name, weight)
            if share == 0:
                continue
            if name.endswith(SPREAD):
                value = value**2 + figures[name.removesuffix(SPREAD)] ** 2
            total, weights = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = total + share * value, weights + share

    def means(self, names: Sequence[str]) -> dict[str, float | None]:
        """Of all processes together, which all ask for the same names; None for what nobody has."""
        sums = torch.tensor([self.sums.get(n, (0.0, 0.0)) for n in names], dtype=torch.float64)
        found = {n: v / w if w else None for n, (v, w) in zip(names, add_up(sums).tolist(), strict=True)}
        for name, square in found.items():
            base = found.get(name.removesuffix(SPREAD))
            if name.endswith(SPREAD) and square is not None and base is not None:
                found[name] = max(0.0, square - base**2) ** 0.5
        return found
