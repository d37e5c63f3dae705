"""The only file that words a question: comparison in, dialog out.

Part order puts what comparisons share first: instruction, prompt, reference, candidate, question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewarddance.core.config import Config
from rewarddance.core.errors import InputError

if TYPE_CHECKING:  # both import torch, and configurations must not
    from rewarddance.core.media import Dialog
    from rewarddance.core.types import Comparison

INSTRUCTIONS: dict[str, str] = {
    "overall": "prefer the better picture for the prompt.",
    "fidelity": "prefer the picture that shows what the prompt asks for.",
    "style": "prefer the picture that follows the style of the prompt.",
    "composition": "prefer the picture with the better layout.",
    "novelty": "prefer the picture with the more novel layout.",
    "colour harmony": "prefer the picture with the better harmony of colour.",
}


class Context(Config):
    """How a question is put.

    Attributes:
        instruction: say what "better" means before the prompt.
        yes, no: the answer words; each must be one token of the backbone.
    """

    instruction: bool = True
    yes: str = "yes"
    no: str = "no"

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

    def _instruction(self, criterion: str) -> str:
        if not self.instruction:
            return ""
        if criterion not in INSTRUCTIONS:
            raise InputError(f"no instruction for criterion {criterion!r}; known: {', '.join(INSTRUCTIONS)}")
        return f"instruction: {INSTRUCTIONS[criterion]}\n"
