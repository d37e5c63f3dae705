"""The only file that words a question: comparison in, dialog out.

Part order puts what comparisons share first: instruction, prompt, reference, candidate, question.
"""

from __future__ import annotations

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
Reference = Literal["random", "best_of_n"]


VERDICT = "\nanswer:"
"""Stands between a reason and the verdict that follows it."""

_BETTER_ONE = "is {} the better one?"
"""Where only words tell two questions apart, other words are used and not another order of them: a small model reads
"is A better than B" and "is B better than A" as one bag of words, and learns nothing (docs/log.md)."""


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
    reference: Reference = "random"
    """In training, what pictures are compared with: `random`, whatever the record compares them with; `best_of_n`, the
    record's best by its choices alone, as alignment against best-of-N references asks. No reference at all is
    paradigm generative_pointwise. At inference a comparison brings its own."""
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
    def _reasons_need_roles(self) -> Self:
        if self.cot != "none" and self.layout != "strict":
            raise ValueError("chain of thought needs layout 'strict': reasons speak of a candidate and a reference")
        return self

    def render(self, comparison: Comparison) -> Dialog:
        """The question as texts and media.

        Raises:
            InputError: an empty prompt, or a criterion without an instruction.
        """
        if not comparison.prompt.strip():
            raise InputError("a comparison needs a prompt; it is empty")
        opening = f"{self._instruction(comparison.criterion)}prompt: {comparison.prompt}\n"
        if comparison.reference is None:
            question = f"\nquestion: is the candidate good for the prompt? {self._request}"
            return (f"{opening}candidate: ", comparison.candidate, question)
        alone = self.layout == "two_questions"
        question = _BETTER_ONE.format("the candidate") if alone else "is the candidate better than the reference?"
        tail = f"\nquestion: {question} {self._request}"
        return (f"{opening}reference: ", comparison.reference, "\ncandidate: ", comparison.candidate, tail)

    def render_reversed(self, comparison: Comparison) -> Dialog:
        """The question whether the candidate is better, put to the pictures in each other's place.

        It shares everything before the question with `render` of the swapped comparison.
        """
        shown = self.render(comparison.swapped())
        return (*shown[:-1], f"\nquestion: {_BETTER_ONE.format('the reference')} {self._request}")

    def render_listed(self, comparison: Comparison, pictures: Sequence[Media]) -> Dialog:
        """The question about two of several pictures that are all shown; both must be among them (by identity)."""
        first, second = (
            next(i for i, m in enumerate(pictures, 1) if m is x) for x in (comparison.candidate, comparison.reference)
        )
        shown: list[Part] = [self.render(comparison)[0].removesuffix("reference: ")]  # type: ignore[union-attr]
        for i, picture in enumerate(pictures, 1):
            shown += [f"image {i}: ", picture, "\n"]
        question = f"image {first} or image {second}: {_BETTER_ONE.format(f'image {first}')}"
        return (*shown, f"question: {question} {self._request}")

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
        """A whole answer with its reason: what stands before the verdict, the verdict, and what follows it."""
        word = self.yes if yes else self.no
        if self.cot == "reason_first":
            return f"{rationale.strip()}{VERDICT}", f" {word}", ""
        return "", word, f" because {rationale.strip()}"

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
