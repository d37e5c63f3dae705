"""The settings of a judge; saved as `judge.json`. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from rewarddance.core.clip_frames import ClipFrames
from rewarddance.core.config import Config, Precision
from rewarddance.reward.context import Context
from rewarddance.reward.wording import load_wording

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
FORMAT = 1
"""Version of `judge.json`. Format 0 had no version and kept only the criteria's names."""


MediaKind = Literal["picture", "clip"]
"""What a judge looks at."""


def columns_of(paradigm: Paradigm, context: Context, kinds: Sequence[MediaKind] = ("picture",)) -> tuple[str, ...]:
    """Names of a scalar head's outputs, in order; empty for a generative judge."""
    if paradigm not in SCALAR:
        return ()
    criteria = [*(context.words.criteria if "picture" in kinds else ())]
    criteria += [c for c in (context.clip_words.criteria if "clip" in kinds else ()) if c not in criteria]
    by_paradigm = {"uncertainty": ("mean", "log_std"), "regression": tuple(criteria)}
    return by_paradigm.get(paradigm, ("score",))


class Calibration(Config):
    """The temperature that was fitted after training, on prompts that neither training nor its figures used."""

    temperature: float = Field(1.0, gt=0)
    """Margins are divided by it."""
    ece_before: float | None = None
    """Expected calibration error with temperature 1, on those prompts."""
    ece_after: float | None = None
    """The same after a temperature: the choices of each half of the prompts have the one of the other half."""
    noise_floor: float | None = None
    """The error that a perfectly calibrated judge would show on as many choices."""
    num_choices: int = 0
    num_refused: int = 0
    """Records among those prompts that the judge refused. They are left out."""
    not_fitted: str | None = None
    """Why no temperature was fitted although prompts were set aside; the temperature is 1."""


class JudgeSpec(Config):
    """Kept in `judge.json`."""

    format: int = FORMAT
    paradigm: Paradigm = "generative_pairwise"
    context: Context = Context()
    precision: Precision = "auto"
    """Precision of its training; `fp32` is kept at inference."""
    temperature: float = Field(1.0, gt=0)
    """The log-odds of a generative judge's answers are divided by it, in training too."""
    calibration: Calibration = Calibration()
    tiles: int = 1
    """Parts that training cut a large picture into, beside a view of the whole."""
    clips: ClipFrames = ClipFrames()
    """Which frames of a clip it sees."""
    kinds: tuple[MediaKind, ...] = ("picture",)
    """What its training records compared."""
    criteria: tuple[str, ...] = ()
    """The criteria of its training records, the most frequent first."""
    columns: tuple[str, ...] = ()
    """Names of a scalar head's outputs, in order."""
    pointwise: bool = False
    """A `generative_pairwise` judge that has learnt the pointwise question too."""
    trained: bool = False
    """False for a plain VLM that was not trained to judge."""

    @model_validator(mode="before")
    @classmethod
    def _from_format_0(cls, given: Any) -> Any:
        """Fill in what a folder without `format` left to the code of its time."""
        if not isinstance(given, dict) or "context" not in given or isinstance(given["context"], Context):
            return given
        if "format" in given:
            return given
        context = dict(given["context"])
        roles = context.pop("names", "numbers") == "roles"
        words = load_wording("embedded-roles" if roles else "embedded")
        changes = {name: (context.pop(name, name),) for name in ("yes", "no")}
        changes["criteria"] = words.criteria | context.get("instructions", {})  # type: ignore[assignment]
        whole = Context.model_validate(context | {"wording": words.model_copy(update=changes)})
        paradigm = given.get("paradigm", "generative_pairwise")
        return {**given, "format": FORMAT, "context": whole, "columns": columns_of(paradigm, whole)}
