"""The only file that words a question: comparison in, dialog out.

Part order puts what comparisons share first: instruction, how to answer, prompt, reference, candidate, question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config
from rewarddance.core.errors import InputError

if TYPE_CHECKING:  # both import torch, and configurations must not
    from rewarddance.core.media import Dialog, Media, Part
    from rewarddance.core.types import Comparison

INSTRUCTIONS: dict[str, str] = {
    "overall": "prefer the better picture for the prompt.",
    "fidelity": "prefer the picture that shows what the prompt asks for.",
    "style": "prefer the picture that follows the style of the prompt.",
    "composition": "prefer the picture with the better layout.",
    "novelty": "prefer the picture with the more novel layout.",
    "colour harmony": "prefer the picture with the better harmony of colour.",
}
UNNAMED = "overall"
"""The criterion of a question that names none, put to a judge that was trained for none."""


Layout = Literal["strict", "two_questions", "listwise"]
Cot = Literal["none", "answer_first", "reason_first"]
Reference = Literal["random", "best_of_n", "none"]
Names = Literal["roles", "numbers"]


VERDICT = "\nanswer:"
"""Stands between a reason and the verdict that follows it."""

_BETTER_ONE = "is image {} the better one?"
"""A question that a VLM understands before it is trained to judge (docs/log.md). Where only words tell two questions
apart, they name another picture: "is A better than B" and "is B better than A" are one bag of words to a small one."""

_ROLE = re.compile(r"\b(?:the )?(candidate|reference)\b", re.IGNORECASE)
"""What reasons call the two pictures, in whatever order they are asked about."""


class Context(Config):
    """How a question is put.

    Attributes:
        instruction: say what "better" means before the prompt.
        yes, no: the answer words; each must be one token of the backbone.
    """

    instruction: bool = True
    instructions: dict[str, str] = {}
    """Sentences for criteria of your own, or in place of the built-in ones, by criterion; kept with the judge."""
    yes: str = "yes"
    no: str = "no"
    layout: Layout = "strict"
    """`strict` swaps the pictures for the other order; `two_questions` leaves them and asks the question both ways, so
    that all before it is shared (yes-bias cancels, position bias does not; training shuffles places); `listwise` shows
    all pictures of a prompt once and asks about pairs of them. Judges of different layouts do not compare."""
    names: Names = "numbers"
    """What pictures are called: `numbers`, image 1 and image 2, as VLMs know them from their training on several
    pictures; `roles`, reference and candidate, which they have to learn (layout `strict` alone)."""
    reference: Reference = "random"
    """In training, what pictures are compared with: `random`, whatever the record compares them with; `best_of_n`, the
    record's best by its choices alone, as alignment against best-of-N references asks; `none`, nothing: the generative
    judge is then asked about single pictures (paradigm generative_pointwise). At inference a comparison brings its own.
    """
    cot: Cot = "none"
    """Chain of thought, with layout `strict`. `answer_first`: the verdict, then the reason, which costs nothing at
    inference; `reason_first`: the reason is written first, and the verdict hangs on it."""
    samples: int = Field(4, ge=1)
    """`reason_first` at inference: reasons written for each question; P(yes) is their mean."""
    max_reason_tokens: int = Field(64, ge=1)
    permutations: int = Field(2, ge=1)
    """`listwise` at inference: how many orders of the pictures margins are averaged over."""
    max_pictures: int = Field(8, ge=2)
    """`listwise`: pictures in one context; more are asked in several."""

    @model_validator(mode="after")
    def _layouts_fit(self) -> Self:
        if self.cot != "none" and self.layout != "strict":
            raise ValueError("chain of thought needs layout 'strict': reasons speak of a candidate and a reference")
        if self.names == "roles" and self.layout != "strict":
            raise ValueError(f"layout {self.layout} asks about either picture by its number; leave names 'numbers'")
        return self

    def render(self, comparison: Comparison) -> Dialog:
        """The question as texts and media.

        Raises:
            InputError: an empty prompt, or a criterion without an instruction.
        """
        if not comparison.prompt.strip():
            raise InputError("a comparison needs a prompt; it is empty")
        candidate, reference = comparison.candidate, comparison.reference
        if self.names == "numbers":
            if reference is None:
                return self._numbered(comparison, (candidate,), "is image 1 good for the prompt?")
            return self._numbered(comparison, (reference, candidate), _BETTER_ONE.format(2))
        opening = f"{self._instruction(comparison.criterion)}prompt: {comparison.prompt}\n"
        if reference is None:
            question = f"\nquestion: is the candidate good for the prompt? {self._request}"
            return (f"{opening}candidate: ", candidate, question)
        tail = f"\nquestion: is the candidate better than the reference? {self._request}"
        return (f"{opening}reference: ", reference, "\ncandidate: ", candidate, tail)

    def _numbered(self, comparison: Comparison, pictures: Sequence[Media], question: str) -> Dialog:
        """What questions share comes first, what differs last; nothing stands between the question and its answer."""
        opening = f"{self._instruction(comparison.criterion)}{self._request}\nprompt: {comparison.prompt}\n"
        shown: list[Part] = []
        for i, picture in enumerate(pictures, 1):
            shown += [f"{opening}image {i}: ", picture]
            opening = "\n"
        return (*shown, f"\nquestion: {question}")

    def render_reversed(self, comparison: Comparison) -> Dialog:
        """The question whether the candidate is better, put to the pictures in each other's place.

        It shares everything before the question with `render` of the swapped comparison.
        """
        shown = self.render(comparison.swapped())
        return (*shown[:-1], f"\nquestion: {_BETTER_ONE.format(1)}")

    def render_listed(self, comparison: Comparison, pictures: Sequence[Media]) -> Dialog:
        """The question about two of several pictures that are all shown; both must be among them (by identity)."""
        first, second = (
            next(i for i, m in enumerate(pictures, 1) if m is x) for x in (comparison.candidate, comparison.reference)
        )
        return self._numbered(comparison, pictures, f"against image {second}, {_BETTER_ONE.format(first)}")

    @property
    def _request(self) -> str:
        """How the answer is to be given."""
        plain = f"answer {self.yes} or {self.no}"
        if self.cot == "none":
            return f"{plain}."
        return (
            f"first {plain}, second the reason." if self.cot == "answer_first" else f"first the reason, second {plain}."
        )

    def answer(self, yes: bool, rationale: str) -> tuple[str, str, str]:
        """A whole answer with its reason: what stands before the verdict, the verdict, and what follows it.

        Args:
            rationale: calls the pictures candidate and reference; the answer calls them as the question did.
        """
        word, reason = self.yes if yes else self.no, rationale.strip()
        if self.names == "numbers":
            numbers = {"candidate": "image 2", "reference": "image 1"}
            reason = _ROLE.sub(lambda found: numbers[found[1].lower()], reason)
        if self.cot == "reason_first":
            return f"{reason}{VERDICT}", f" {word}", ""
        return "", word, f" because {reason}"

    def _instruction(self, criterion: str | None) -> str:
        if not self.instruction:
            return ""
        name = criterion or UNNAMED
        if name not in self.wordings:
            raise InputError(
                f"no instruction for criterion {name!r}; known: {', '.join(self.wordings)}; context.instructions takes "
                "your own"
            )
        return f"instruction: {self.wordings[name]}\n"

    @property
    def wordings(self) -> dict[str, str]:
        """The sentence of every criterion; the built-in criteria first."""
        return INSTRUCTIONS | self.instructions
