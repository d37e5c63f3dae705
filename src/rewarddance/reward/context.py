"""How a question is asked: a comparison becomes a dialog.

The parts that comparisons share come first in a dialog: instruction, prompt, reference, candidate, question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from rewarddance.core.config import Config
from rewarddance.core.errors import InputError
from rewarddance.reward.wording import CLIPS, NAMED, Wording, load_wording, spellings

if TYPE_CHECKING:  # both import torch, and configurations must not
    from rewarddance.core.media import Dialog, DialogPart, Media
    from rewarddance.core.types import Comparison

UNNAMED = "overall"
"""The criterion of a question that names none, for a judge that was trained on none."""
VERDICT = "\nanswer:"
"""Stands between a reason and the verdict that follows it."""

Layout = Literal["strict", "two_questions", "listwise"]
Cot = Literal["none", "answer_first", "reason_first"]
Reference = Literal["random", "best_of_n", "none"]

_ROLE = re.compile(r"\b(?:the )?(candidate|reference)\b", re.IGNORECASE)
_PICTURE = "\x00"
"""Stands for a picture while a template is filled in."""


class Context(Config):
    """How a question is put."""

    template: str = "embedded"
    """The words: `embedded` (pictures by number, words that the small embedded VLM knows), `embedded-roles` (the same,
    pictures called reference and candidate), `rewarddance` (for public VLMs: the criterion spelled out), or a YAML file
    of your own (docs/guides/wording.md)."""
    wording: Wording | None = None
    """The resolved words; filled in when a judge is saved."""
    clip_wording: Wording | None = None
    """The same for questions about clips; filled in when a judge of clips is saved. A named template has a set for
    them, for example `embedded-clips`. A file of your own is used for both."""
    instruction: bool = True
    """Say what "better" means before the prompt."""
    instructions: dict[str, str] = {}
    """Sentences for criteria of your own, or in place of the template's, by criterion."""
    yes: str | None = None
    no: str | None = None
    """Answer words in place of the template's. Each needs a spelling that is one token of the backbone."""
    examples: int = Field(0, ge=0)
    """Number of labelled comparisons that are shown before the question, for public VLMs. Training sets some prompts of
    its data aside for them and saves them with the judge. All questions share them, so a pass computes their tokens
    once."""
    layout: Layout = "strict"
    """`strict` swaps the pictures for the other order. `two_questions` leaves them in place and asks the question both
    ways, so that everything before the question is shared (a bias to "yes" cancels, a bias to a position does not;
    training shuffles positions). `listwise` shows all pictures of a prompt once and asks about pairs of them. Judges of
    different layouts are not comparable."""
    reference: Reference = "random"
    """The pictures that training compares with. `random`: all that the record compares. `best_of_n`: only the picture
    with the largest share of wins in the record, as in alignment with best-of-N references. `none`: none; the
    generative judge is then asked about single pictures (paradigm generative_pointwise)."""
    cot: Cot = "none"
    """Chain of thought, with layout `strict`. `answer_first`: the verdict, then the reason, which costs nothing at
    inference. `reason_first`: the reason is written first, and the verdict depends on it."""
    samples: int = Field(4, ge=1)
    """`reason_first` at inference: reasons written for each question; P(yes) is their mean."""
    max_reason_tokens: int = Field(64, ge=1)
    permutations: int = Field(2, ge=1)
    """`listwise` at inference: number of orders of the pictures that margins are averaged over."""
    max_pictures: int = Field(8, ge=2)
    """`listwise`: pictures in one context; more pictures take several contexts."""

    @model_validator(mode="before")
    @classmethod
    def _old_keys(cls, given: Any) -> Any:
        """`names` chose between two wordings before there were templates."""
        if not isinstance(given, dict) or "names" not in given:
            return given
        rest = {k: v for k, v in given.items() if k != "names"}
        return rest | ({"template": "embedded-roles"} if given["names"] == "roles" else {})

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.cot != "none" and self.layout != "strict":
            raise ValueError("chain of thought needs layout 'strict': reasons speak of a candidate and a reference")
        if self.layout != "strict" and not self.words.by_number:
            raise ValueError(f"layout {self.layout} asks about either picture by its number; template "
                             f"{self.template} has no numbers")  # fmt: skip
        return self

    @cached_property
    def words(self) -> Wording:
        """The wording with this context's own sentences and answer words."""
        base = self.wording or load_wording(self.template)
        return self._with_own(base, self.wording is None)

    @cached_property
    def clip_words(self) -> Wording:
        """The same for questions about clips."""
        if self.clip_wording is not None:
            return self._with_own(self.clip_wording, False)
        if self.wording is not None or self.template not in NAMED:
            return self.words
        return self._with_own(load_wording(self.template + CLIPS), True)

    def _with_own(self, base: Wording, replace_words: bool) -> Wording:
        changes: dict[str, Any] = {"criteria": base.criteria | self.instructions}
        for name in ("yes", "no"):
            if (word := getattr(self, name)) is not None and replace_words:
                changes[name] = spellings(word)
        return base.model_copy(update=changes)

    def words_about(self, media: Media) -> Wording:
        """The words of questions about a picture, or about a clip."""
        return self.clip_words if media.is_clip else self.words

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copied = super().model_copy(update=update, deep=deep)
        for name in ("words", "clip_words"):
            copied.__dict__.pop(name, None)  # cached from the fields before the update
        return copied

    def resolved(self, clips: bool = False) -> Context:
        """The same context with its whole wording in it, for saving; with `clips` also the wording about clips."""
        clip_wording = {"clip_wording": self.clip_words} if clips or self.clip_wording is not None else {}
        return self.model_copy(update={"wording": self.words} | clip_wording)

    def problem(self, comparison: Comparison) -> str | None:
        """Why this comparison cannot be asked; None if it can."""
        if not comparison.prompt.strip():
            return "a comparison needs a prompt; it is empty"
        name, criteria = comparison.criterion or UNNAMED, self.words_about(comparison.candidate).criteria
        if comparison.reference is not None and comparison.reference.is_clip != comparison.candidate.is_clip:
            return "a clip and a picture cannot be compared; give two of a kind"
        if self.instruction and name not in criteria:
            known = ", ".join(criteria)
            return f"no instruction for criterion {name!r}; known: {known}; context.instructions takes your own"
        return None

    def render(self, comparison: Comparison) -> Dialog:
        """The question as texts and media.

        Raises:
            InputError: see `problem`.
        """
        if comparison.reference is None:
            return self._render(comparison, [comparison.candidate], "pointwise", candidate=1)
        pictures = [comparison.reference, comparison.candidate]
        return self._render(comparison, pictures, "pairwise", candidate=2, reference=1)

    def render_reversed(self, comparison: Comparison) -> Dialog:
        """The question whether the candidate is better, with the candidate shown first.

        It shares everything before the question with `render` of the swapped comparison.
        """
        assert comparison.reference is not None
        pictures = [comparison.candidate, comparison.reference]
        return self._render(comparison, pictures, "pairwise", candidate=1, reference=2)

    def render_listed(self, comparison: Comparison, pictures: Sequence[Media]) -> Dialog:
        """The question about two of several pictures that are all shown. Both must be among them (by identity)."""
        first, second = (
            next(i for i, m in enumerate(pictures, 1) if m is x) for x in (comparison.candidate, comparison.reference)
        )
        return self._render(comparison, pictures, "listwise", candidate=first, reference=second)

    def _render(
        self,
        comparison: Comparison,
        pictures: Sequence[Media],
        kind: Literal["pairwise", "pointwise", "listwise"],
        **numbers: int,
    ) -> Dialog:
        if problem := self.problem(comparison):
            raise InputError(problem)
        words, name = self.words_about(comparison.candidate), comparison.criterion or UNNAMED
        question = getattr(words, kind) or ""
        request = self._request(words)
        instruction = words.instruction.format(sentence=words.criteria[name]) if self.instruction else ""
        text = words.opening.format(instruction=instruction, request=request, prompt=comparison.prompt)
        parts: list[DialogPart] = []
        shown: list[tuple[str, Media]] = []
        if comparison.condition is not None:
            shown.append((words.condition.format(picture=_PICTURE), comparison.condition))
        roles = ("reference", "candidate") if len(pictures) > 1 else ("candidate",)
        for i, picture in enumerate(pictures):
            slots = {"number": i + 1, "role": roles[min(i, len(roles) - 1)]}
            shown.append((words.picture.format(picture=_PICTURE, **slots), picture))
        for around, picture in shown:
            before, after = around.split(_PICTURE)
            parts += [text + before, picture]
            text = after
        return (*parts, text + question.format(request=request, prompt=comparison.prompt, **numbers))

    def _request(self, words: Wording) -> str:
        """How the answer is to be given."""
        text = {
            "none": words.request,
            "answer_first": words.request_answer_first,
            "reason_first": words.request_reason_first,
        }[self.cot]
        return text.format(yes=words.yes[0].strip(), no=words.no[0].strip())

    def answer(self, yes: bool, rationale: str, about: Media | None = None) -> tuple[str, str, str]:
        """A whole answer with its reason: the text before the verdict, the verdict, and the text after it.

        Args:
            rationale: calls the pictures candidate and reference; the answer calls them as the question did.
            about: the candidate; None for a picture.
        """
        words = self.words if about is None else self.words_about(about)
        names, reason = words.names_in_reasons, rationale.strip()
        word = (words.yes if yes else words.no)[0].strip()
        if names:
            reason = _ROLE.sub(lambda match: names[match[1].lower()], reason)
        if self.cot == "reason_first":
            return f"{reason}{VERDICT}", f" {word}", ""
        return "", word, f" because {reason}"
