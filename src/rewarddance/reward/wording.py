"""The words of a question as data: named sets in `wordings/`, or a YAML file of your own.

A judge's folder keeps its whole wording, so that later changes of these sets change no saved judge.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from string import Formatter
from typing import Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config, load_recipe, parse_config
from rewarddance.core.errors import ConfigError

FOLDER = Path(__file__).parent / "wordings"
NAMED = ("embedded", "embedded-roles", "rewarddance")
CLIPS = "-clips"
"""The name of a set of words about clips is the name of the set about pictures with this ending."""
_SLOTS: dict[str, set[str]] = {
    "instruction": {"sentence"},
    "opening": {"instruction", "request", "prompt"},
    "condition": {"picture"},
    "picture": {"number", "role", "picture"},
    "pairwise": {"candidate", "reference", "request", "prompt"},
    "pointwise": {"candidate", "request", "prompt"},
    "listwise": {"candidate", "reference", "request", "prompt"},
    "request": {"yes", "no"},
    "request_answer_first": {"yes", "no"},
    "request_reason_first": {"yes", "no"},
}
_NEEDED = {"instruction": "sentence", "condition": "picture", "picture": "picture"}
_QUESTIONS = ("pairwise", "pointwise", "listwise")


class Wording(Config):
    """A template. `{...}` are slots; a literal brace is written twice."""

    criteria: dict[str, str]
    """The sentence of every criterion, for the slot `{sentence}`."""
    instruction: str
    """Says what "better" means: `{sentence}`."""
    opening: str
    """The beginning of a dialog: `{instruction}`, `{request}`, `{prompt}`. The prompt may stand in all questions
    instead, after the pictures (as in VQAScore, arXiv 2404.01291)."""
    condition: str
    """Shows the picture that both samples were made from: `{picture}`."""
    picture: str
    """Shows one picture: `{picture}`, called by its `{number}` (from 1) or its `{role}` (candidate or reference)."""
    pairwise: str
    """Asks whether the candidate is better; `{candidate}` and `{reference}` are numbers of pictures. Questions may hold
    `{request}` and `{prompt}` too."""
    pointwise: str
    """Asks whether a single picture, `{candidate}`, is good."""
    listwise: str | None
    """Asks about two of several pictures; None if pictures have no numbers."""
    request: str
    """Says how to answer: `{yes}`, `{no}`."""
    request_answer_first: str
    request_reason_first: str
    """The same with chain of thought."""
    yes: tuple[str, ...] = Field(min_length=1)
    no: tuple[str, ...] = Field(min_length=1)
    """Spellings of the answer words. P(yes) sums over those that are single tokens; training teaches the first one."""
    names_in_reasons: dict[str, str] = {}
    """The names of the two pictures in reasons, in place of "candidate" and "reference"."""

    @model_validator(mode="after")
    def _slots_are_known(self) -> Self:
        for name, known in _SLOTS.items():
            text = getattr(self, name)
            if text is None:
                continue
            slots = _slots(text)
            if unknown := sorted(slots - known):
                raise ValueError(f"{name}: no slot {{{unknown[0]}}}; known: {', '.join(sorted(known))}")
            if name in _NEEDED and _NEEDED[name] not in slots:
                raise ValueError(f"{name}: the slot {{{_NEEDED[name]}}} is missing")
        lacking = [name for name in _QUESTIONS if "prompt" not in _slots(getattr(self, name) or "{prompt}")]
        if "prompt" not in _slots(self.opening) and lacking:
            raise ValueError(f"opening: the slot {{prompt}} is missing, and {lacking[0]} does not have it either")
        return self

    @property
    def by_number(self) -> bool:
        """Whether questions name pictures by number, so that they can be asked about in any order."""
        return "{candidate}" in self.pairwise


def _slots(text: str) -> set[str]:
    return {slot for _, slot, _, _ in Formatter().parse(text) if slot is not None}


@cache
def load_wording(name: str) -> Wording:
    """A named set, or a YAML file with the fields of `Wording`.

    Raises:
        ConfigError: no such set or file, or a wrong field; names it.
    """
    if name.removesuffix(CLIPS) in NAMED:
        return parse_config(Wording, load_recipe(FOLDER / f"{name}.yaml"), name)
    if not Path(name).is_file():
        raise ConfigError(f"context.template {name!r}: known are {', '.join(NAMED)}, or a YAML file of your own")
    return parse_config(Wording, load_recipe(name), name)


def spellings(word: str) -> tuple[str, ...]:
    """Ways in which a VLM may write an answer word.

    >>> spellings("yes")
    ('yes', 'Yes', ' yes', ' Yes')
    """
    forms = (word, word.capitalize())
    return tuple(dict.fromkeys([*forms, *(f" {f}" for f in forms)]))
