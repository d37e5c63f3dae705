"""A budget of counted work. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config

WORK = ("generator_passes", "generator_passes_with_gradient", "judge_calls", "judge_calls_with_gradient")
"""Names of the counts (`align/work.py`)."""


class Budget(Config):
    """The most work of a run. It ends after the first step in which one of these is reached; None has no limit."""

    generator_passes: int | None = Field(None, ge=1)
    """Forward passes of the generator for one picture; a guided velocity is two."""
    generator_passes_with_gradient: int | None = Field(None, ge=1)
    """Those of them that a backward pass follows."""
    judge_calls: int | None = Field(None, ge=1)
    """Comparisons (or single pictures) that the judge was asked about."""
    judge_calls_with_gradient: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if not self.limits:
            raise ValueError(f"budget: limits nothing; give one of {', '.join(WORK)}")
        return self

    @property
    def limits(self) -> dict[str, int]:
        """The limits that were given."""
        return {name: value for name in WORK if (value := getattr(self, name)) is not None}

    def used_up(self, work: Mapping[str, int]) -> bool:
        """Whether one of the limits is reached."""
        return any(work.get(name, 0) >= limit for name, limit in self.limits.items())
