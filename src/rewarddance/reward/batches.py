"""Long lists of comparisons, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rewarddance.core.progress import tracked
from rewarddance.core.types import Comparison

BATCH = 256
"""Comparisons of one call."""


def in_batches(
    values: Callable[[Sequence[Comparison]], Tensor], comparisons: Sequence[Comparison], title: str, batch: int = BATCH
) -> Tensor:
    """Values of all comparisons, (N,) fp64 on the CPU.

    Args:
        values: gives one value for each comparison of a batch.
        title: of the progress bar.
    """
    parts = []
    for start in tracked(range(0, len(comparisons), batch), title):
        parts.append(values(comparisons[start : start + batch]).detach().double().cpu())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
