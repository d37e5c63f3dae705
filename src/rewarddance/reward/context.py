"""The only file that words a question: comparison in, dialog out.

Part order puts what comparisons share first: instruction, prompt, reference, candidate, question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

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


Layout = Literal["strict", "two_questions", "listwise"]


class Context(Config):
    """How a question is put.

    Attributes:
        instruction: say what "better" means before the prompt.
        yes, no: the answer words; each must be one token of the backbone.
    """

    instruction: bool = True
    yes: str = "yes"
    no: str = "no"
    layout: Layout = "strict"
    """`strict` swaps the pictures for the other order; `two_questions` leaves them and asks the question both ways, so
    that all before it is shared (yes-bias cancels, position bias does not; training shuffles places); `listwise` shows
    all pictures of a prompt once and asks about pairs of them. Judges of different layouts do not compare."""
    permutations: int = Field(2, ge=1)
    """`listwise` at inference: how many orders of the pictures margins are averaged over."""
    max_pictures: int = Field(8, ge=2)
    """`listwise`: pictures in one context; more are asked in several."""

    def render(self, comparison: Comparison) -> Dialog:
        """The question as texts and media.

        Raises:
            InputError: an empty prompt, or a criterion without an instruction.
        """
        if not comparison.prompt.strip():
            raise InputError("a comparison needs a prompt; it is empty")
        opening = f"{self._instruction(comparison.criterion)}prompt: {comparison.prompt}\n"
        if comparison.reference is None:
            question = f"\nquestion: is the candidate good for the prompt? answer {self.yes} or {self.no}."
            return (f"{opening}candidate: ", comparison.candidate, question)
        question = f"\nquestion: is the candidate better than the reference? answer {self.yes} or {self.no}."
        return (f"{opening}reference: ", comparison.reference, "\ncandidate: ", comparison.candidate, question)

    def render_reversed(self, comparison: Comparison) -> Dialog:
        """The question whether the candidate is better, put to the pictures in each other's place.

        It shares everything before the question with `render` of the swapped comparison.
        """
        shown = self.render(comparison.swapped())
        return (*shown[:-1], f"\nquestion: is the reference better than the candidate? answer {self.yes} or {self.no}.")

    def render_listed(self, comparison: Comparison, pictures: Sequence[Media]) -> Dialog:
        """The question about two of several pictures that are all shown; both must be among them (by identity)."""
        first, second = (
            next(i for i, m in enumerate(pictures, 1) if m is x) for x in (comparison.candidate, comparison.reference)
        )
        shown: list[Part] = [self.render(comparison)[0].removesuffix("reference: ")]  # type: ignore[union-attr]
        for i, picture in enumerate(pictures, 1):
            shown += [f"image {i}: ", picture, "\n"]
        return (*shown, f"question: is image {first} better than image {second}? answer {self.yes} or {self.no}.")

    def _instruction(self, criterion: str) -> str:
        if not self.instruction:
            return ""
        if criterion not in INSTRUCTIONS:
            raise InputError(f"no instruction for criterion {criterion!r}; known: {', '.join(INSTRUCTIONS)}")
        return f"instruction: {INSTRUCTIONS[criterion]}\n"
