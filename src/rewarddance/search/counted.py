"""A generator that counts its work and keeps its passes small."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rewarddance.core.config import Computed
from rewarddance.core.media import Media
from rewarddance.core.protocols import Generator
from rewarddance.core.task import Request


@dataclass
class Counted:
    """Holds another generator, counts what it computes, and gives it at most `batch` rows at once.

    Attributes:
        nfe: forward passes of all rows so far (number of function evaluations).
        decodes: pictures decoded so far.
    """

    inner: Generator
    batch: int = 128
    nfe: int = 0
    decodes: int = 0
    guidance: float = field(init=False)
    precision: Computed = field(init=False)

    def __post_init__(self) -> None:
        self.guidance, self.precision = self.inner.guidance, self.inner.precision

    @property
    def passes(self) -> int:
        return self.inner.passes

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def condition(self, prompts: Sequence[Request]) -> list[Any]:
        """The inner generator's conditions, one for every `batch` prompts."""
        return [self.inner.condition(prompts[i : i + self.batch]) for i in range(0, len(prompts), self.batch)]

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        return self.inner.noise(n, rng)

    def times(self, num_steps: int) -> Tensor:
        return self.inner.times(num_steps)

    def velocity(self, z: Tensor, t: float | Tensor, condition: list[Any]) -> Tensor:
        self.nfe += len(z) * self.passes
        portions = torch.split(z, self.batch)
        each = isinstance(t, Tensor) and t.ndim > 0
        times = torch.split(torch.as_tensor(t), self.batch) if each else [t] * len(portions)
        rows = zip(portions, times, condition, strict=True)
        return torch.cat([self.inner.velocity(part, now, own) for part, now, own in rows])

    def decode(self, z: Tensor) -> list[Media]:
        self.decodes += len(z)
        return [picture for part in torch.split(z, self.batch) for picture in self.inner.decode(part)]

    def trainable(self) -> dict[str, nn.Module]:
        return self.inner.trainable()

    def reference(self) -> AbstractContextManager[None]:
        return self.inner.reference()
