"""Prompts of the moving world from specifications and back. `parse(phrase(spec, wording)) == spec`."""

from __future__ import annotations

import re

from rewarddance.world.grammar import PromptError
from rewarddance.world.motion.scene import ACTIONS, Act, Action, MotionSpec, Speed
from rewarddance.world.scene import BACKGROUNDS, COLOURS, SHAPES, STYLES

WORDINGS = (
    "{style} clip of {body} on {background}",
    "{body}, {style} style, {background} background",
)
"""Sentence frames that every training stream uses."""

HELD_OUT_WORDINGS = ("on a {background} background, {body} in {style} style",)
"""Frames made of known words in an order that no training stream uses."""

ADVERBS: dict[Speed, str] = {"slow": "slowly", "fast": "quickly"}
_SPEED_OF: dict[str, Speed] = {word: speed for speed, word in ADVERBS.items()}


def does(act: Act) -> str:
    """
    >>> does(Act("red", "circle", "moving left", "fast")), does(Act("red", "circle", "turning", None, "blue"))
    ('quickly moving left', 'turning blue')
    """
    adverb = "" if act.speed is None else f"{ADVERBS[act.speed]} "
    into = "" if act.into is None else f" {act.into}"
    return f"{adverb}{act.action}{into}"


def phrase_act(act: Act) -> str:
    """
    >>> phrase_act(Act("red", "circle", "moving left", "slow"))
    'a red circle slowly moving left'
    """
    return f"a {act.colour} {act.shape} {does(act)}"


def phrase_body(spec: MotionSpec) -> str:
    """The objects of a specification and what they do, without style and background."""
    first, *rest = spec.acts
    if first.action == "circling":
        return f"{phrase_act(first)} a {rest[0].colour} {rest[0].shape}"
    return " and ".join(map(phrase_act, spec.acts))


def phrase(spec: MotionSpec, wording: str = WORDINGS[0]) -> str:
    """
    >>> phrase(MotionSpec((Act("red", "circle", "circling", "fast"), Act("blue", "square", "staying still"))))
    'flat clip of a red circle quickly circling a blue square on white'
    """
    return wording.format(style=spec.style, body=phrase_body(spec), background=spec.background)


def _frame_pattern(frame: str) -> re.Pattern[str]:
    groups = {
        "style": f"(?P<style>{'|'.join(STYLES)})",
        "background": f"(?P<background>{'|'.join(BACKGROUNDS)})",
        "body": "(?P<body>.+?)",
    }
    return re.compile(f"^{frame.format(**groups)}$")


_FRAMES = tuple(_frame_pattern(f) for f in (*WORDINGS, *HELD_OUT_WORDINGS))
_KIND = rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_ACT = re.compile(
    rf"^{_KIND} (?:({'|'.join(_SPEED_OF)}) )?({'|'.join(a for a in ACTIONS if a not in ('turning', 'circling'))}"
    rf"|turning (?:{'|'.join(COLOURS)}))$"
)
_ORBIT = re.compile(rf"^{_KIND} (?:({'|'.join(_SPEED_OF)}) )?circling {_KIND}$")


def parse_act(text: str) -> Act:
    """The act that `text` names for one object; `PromptError` if it names none."""
    match = _ACT.match(text)
    if match is None:
        raise PromptError(f"not an object and what it does: {text!r}; expected 'a red circle slowly moving left'")
    colour, shape, adverb, action = match.groups()
    into = action.removeprefix("turning ") if action.startswith("turning ") else None
    named: Action = "turning" if into else action  # type: ignore[assignment]
    return Act(colour, shape, named, _SPEED_OF.get(adverb), into)  # type: ignore[arg-type]


def _parse_body(body: str) -> tuple[Act, ...]:
    orbit = _ORBIT.match(body)
    if orbit:
        colour, shape, adverb, target_colour, target_shape = orbit.groups()
        first = Act(colour, shape, "circling", _SPEED_OF.get(adverb))  # type: ignore[arg-type]
        return first, Act(target_colour, target_shape, "staying still")  # type: ignore[arg-type]
    return tuple(map(parse_act, body.split(" and ")))


def parse(prompt: str) -> MotionSpec:
    """The specification that a prompt asks for.

    Raises:
        PromptError: the prompt is not a sentence of this grammar; the message names the part.
    """
    for frame in _FRAMES:
        match = frame.match(prompt)
        if match:
            try:
                return MotionSpec(_parse_body(match["body"]), match["style"], match["background"])  # type: ignore[arg-type]
            except PromptError:
                raise
            except ValueError as error:  # a sentence of the grammar about something impossible
                raise PromptError(f"{prompt!r}: {error}") from None
    raise PromptError(f"not a prompt of the moving world: {prompt!r}; try {WORDINGS[0]!r}")
