"""Prompts from specifications and back. `parse(phrase(spec, wording)) == spec` for every spec and wording."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rewarddance.core.errors import InputError
from rewarddance.world.scene import (
    ARRANGEMENT_COUNT,
    ARRANGEMENTS,
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    STYLES,
    Spec,
    Term,
)

WORDINGS = (
    "{style} drawing of {body} on {background}",
    "{body}, {style} style, {background} background",
)
"""Sentence frames that every training stream uses."""

HELD_OUT_WORDINGS = ("on a {background} background, {body} in {style} style",)
"""Sentence frames of known words in an order that no training stream uses."""

NUMBERS = ("zero", "one", "two", "three", "four", "five")
_PLURAL = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
_SINGULAR = {plural: shape for shape, plural in _PLURAL.items()}


class PromptError(InputError, ValueError):
    """The prompt is not a sentence of the embedded world."""


def phrase_term(term: Term) -> str:
    """
    >>> phrase_term(Term("red", "cross", 2, large=True))
    'two large red crosses'
    """
    size = "large " if term.large else ""
    if term.count == 1:
        return f"a {size}{term.colour} {term.shape}"
    return f"{NUMBERS[term.count]} {size}{term.colour} {_PLURAL[term.shape]}"


def phrase_body(spec: Spec) -> str:
    """The objects of a spec in words, without style and background."""
    if spec.arrangement is not None:
        return f"a {spec.arrangement} of {phrase_term(spec.terms[0]).split(' ', 1)[1]}"
    parts = [phrase_term(t) for t in spec.terms]
    if spec.relation is not None:
        return f"{parts[0]} {spec.relation} {parts[1]}"
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def phrase(spec: Spec, wording: str = WORDINGS[0]) -> str:
    """
    >>> phrase(Spec((Term("red", "circle"), Term("blue", "square")), relation="left of"))
    'flat drawing of a red circle left of a blue square on white'
    """
    return wording.format(style=spec.style, body=phrase_body(spec), background=spec.background)


def random_phrase(spec: Spec, rng: np.random.Generator, wordings: Sequence[str] = WORDINGS) -> str:
    """The spec in one of the wordings."""
    return phrase(spec, wordings[int(rng.integers(len(wordings)))])


def _frame_pattern(frame: str) -> re.Pattern[str]:
    text = re.escape(frame).replace(r"\{", "{").replace(r"\}", "}")
    groups = {
        "style": f"(?P<style>{'|'.join(STYLES)})",
        "background": f"(?P<background>{'|'.join(BACKGROUNDS)})",
        "body": "(?P<body>.+?)",
    }
    for name, group in groups.items():
        text = text.replace("{" + name + "}", group)
    return re.compile(f"^{text}$")


_FRAMES = tuple(_frame_pattern(f) for f in (*WORDINGS, *HELD_OUT_WORDINGS))
_TERM = re.compile(
    rf"^(?P<count>a|{'|'.join(NUMBERS[2:])}) (?P<large>large )?(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<noun>{'|'.join((*_SINGULAR, *_SINGULAR.values()))})$"
)


def parse_term(text: str) -> Term:
    """The term that `text` names; `PromptError` if it names none."""
    match = _TERM.match(text)
    if match is None:
        raise PromptError(f"not a group of objects: {text!r}; expected something like 'two large red circles'")
    count = 1 if match["count"] == "a" else NUMBERS.index(match["count"])
    noun = match["noun"]
    if (noun in _SINGULAR) != (count > 1):
        raise PromptError(f"singular and plural disagree in {text!r}")
    return Term(match["colour"], _SINGULAR.get(noun, noun), count, bool(match["large"]))  # type: ignore[arg-type]


def _parse_body(body: str, style: str, background: str) -> Spec:
    common: dict[str, str] = {"style": style, "background": background}
    arrangement = re.match(rf"^a ({'|'.join(ARRANGEMENTS)}) of (.+)$", body)
    if arrangement:
        count = ARRANGEMENT_COUNT[arrangement[1]]  # type: ignore[index]
        term = parse_term(f"{NUMBERS[count]} {arrangement[2]}")
        return Spec((term,), arrangement=arrangement[1], **common)  # type: ignore[arg-type]
    for relation in RELATIONS:
        if f" {relation} " in body:
            left, right = body.split(f" {relation} ", 1)
            return Spec((parse_term(left), parse_term(right)), relation=relation, **common)  # type: ignore[arg-type]
    terms = tuple(parse_term(part) for part in re.split(r", | and ", body))
    return Spec(terms, **common)  # type: ignore[arg-type]


def parse(prompt: str) -> Spec:
    """What a prompt asks for.

    Raises:
        PromptError: the prompt is not a sentence of this grammar; the message names the part.
    """
    for frame in _FRAMES:
        match = frame.match(prompt)
        if match:
            try:
                return _parse_body(match["body"], match["style"], match["background"])
            except PromptError:
                raise
            except ValueError as error:  # a sentence of the grammar whose specification is impossible
                raise PromptError(f"{prompt!r}: {error}") from None
    raise PromptError(f"not a prompt of the embedded world: {prompt!r}; try {WORDINGS[0]!r}")
