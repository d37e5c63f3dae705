"""What, beside the weights, makes a judge. No torch here, so that `--help` stays quick."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from rewarddance.core.config import Config
from rewarddance.reward.context import Context

Paradigm = Literal[
    "generative_pairwise",
    "generative_pointwise",
    "bradley_terry",
    "bradley_terry_ties",
    "uncertainty",
    "regression",
    "ranking",
]
PARADIGMS: tuple[Paradigm, ...] = get_args(Paradigm)
SCALAR: frozenset[str] = frozenset(p for p in PARADIGMS if not p.startswith("generative"))
"""Paradigms with a head of their own instead of the answer words."""


class JudgeSpec(Config):
    """Kept in `judge.json`."""

    paradigm: Paradigm = "generative_pairwise"
    context: Context = Context()
    precision: Literal["fp32", "bf16"] = "fp32"
    temperature: float = Field(1.0, gt=0)
    """What the log-odds of a generative judge's answers are divided by."""
    tiles: int = 1
    """Parts that it was trained to see a large picture in, beside a view of the whole."""
    criteria: tuple[str, ...] = ()
    """What its records were about, the most frequent first."""
    trained: bool = False
    """False for a plain VLM that is asked as it is."""
