"""Questions with their answers about one and two scenes, and about a scene against a prompt.

No question asks for a preference. "Does image 1 match the prompt" and "what is missing in image 1" are image-text
matching.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rewarddance.world.describe import Kinds, fulfils, holds, kinds, listing, terms_of
from rewarddance.world.grammar import NUMBERS, phrase_body, phrase_term
from rewarddance.world.sampling import TRAIN_STYLES
from rewarddance.world.scene import BACKGROUNDS, CANVAS, COLOURS, RELATIONS, SHAPES, Placed, Scene, Spec, Term
from rewarddance.world.splits import OOD_COUNT, OOD_KINDS, split_of

Turn = tuple[str, str]
"""(question, answer)"""


@dataclass(frozen=True)
class View:
    """What questions are asked about: scenes, a prompt's meaning, and the random stream that chooses questions."""

    scenes: tuple[Scene, ...]
    spec: Spec
    rng: np.random.Generator

    def pick(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def kind(self, scene: Scene) -> Term:
        """A kind to ask about: with probability 0.55 one in the picture, otherwise any trainable one."""
        if scene.objects and self.rng.random() < 0.55:
            o = scene.objects[int(self.rng.integers(len(scene.objects)))]
            return Term(o.colour, o.shape)
        while True:
            colour, shape = self.pick(COLOURS), self.pick(SHAPES)
            if (colour, shape) not in OOD_KINDS:
                return Term(colour, shape)  # type: ignore[arg-type]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _of_kind(scene: Scene, colour: str, shape: str) -> list[Placed]:
    return [o for o in scene.objects if (o.colour, o.shape) == (colour, shape)]


def _is_there(view: View, i: int) -> Turn:
    scene = view.scenes[i]
    term = view.kind(scene)
    objects = _of_kind(scene, term.colour, term.shape)
    return f"is there {phrase_term(term)} in image {i + 1}?", _yes(bool(objects))


def _how_many(view: View, i: int) -> Turn:
    objects = view.scenes[i].objects
    if view.rng.random() < 0.5:
        return f"how many objects are in image {i + 1}?", NUMBERS[min(5, len(objects))]
    shape = view.pick(SHAPES)
    return f"how many {shape} in image {i + 1}?", NUMBERS[min(5, sum(o.shape == shape for o in objects))]


def _style(view: View, i: int) -> Turn:
    scene = view.scenes[i]
    if view.rng.random() < 0.5:
        style = view.pick(TRAIN_STYLES)
        return f"is image {i + 1} {style}?", _yes(scene.style == style)
    background = view.pick(BACKGROUNDS)
    return f"is image {i + 1} on {background}?", _yes(scene.background == background)


def relation_asked(view: View, i: int) -> Turn | None:
    objects = view.scenes[i].objects
    if len(objects) < 2:
        return None
    a, b = (objects[k] for k in view.rng.permutation(len(objects))[:2])
    same = [o for o in objects if (o.colour, o.shape) in {(a.colour, a.shape), (b.colour, b.shape)}]
    relation = RELATIONS[int(view.rng.integers(4))]
    if len(same) != 2 or (a.colour, a.shape) == (b.colour, b.shape):
        return None
    terms = Term(a.colour, a.shape, 1, a.large), Term(b.colour, b.shape, 1, b.large)
    if split_of(Spec(terms, view.scenes[i].style, view.scenes[i].background, relation)) != "train":
        return None
    text = f"{a.colour} {a.shape} {relation} the {b.colour} {b.shape}"
    return f"is the {text} in image {i + 1}?", _yes(holds(a, relation, b))


def _where(view: View, i: int) -> Turn | None:
    """In which third of the picture an object is, across and down. A model needs such places to judge relations."""
    objects = view.scenes[i].objects
    if not objects:
        return None
    o = objects[int(view.rng.integers(len(objects)))]
    return place_of(view.scenes[i], o.colour, o.shape, i)


def place_of(scene: Scene, colour: str, shape: str, i: int) -> Turn | None:
    """The place of the only object of a kind; None for several or no objects, and for the middle of the picture."""
    objects = _of_kind(scene, colour, shape)
    if len(objects) != 1:
        return None
    third = CANVAS / 3
    across = "left" if objects[0].x < third else "right" if objects[0].x > 2 * third else ""
    down = "above" if objects[0].y < third else "below" if objects[0].y > 2 * third else ""
    answer = f"{across} {down}".strip()
    return (f"where is the {colour} {shape} in image {i + 1}?", answer) if answer else None


def prompted_objects(view: View, i: int) -> list[Turn]:
    """Questions about the first and second object of the prompt: their names, their order, their places.

    Without such questions a small model ignores the order of a prompt's words (docs/log.md).
    """
    turns: list[Turn] = []
    for nth, term in zip(("first", "second"), view.spec.terms, strict=False):
        name, place_turn = f"{term.colour} {term.shape}", place_of(view.scenes[i], term.colour, term.shape, i)
        turns += [
            (f"what is the {nth} object of the prompt?", name),
            (f"which object of the prompt is the {name}?", nth),
        ]
        if place_turn is None:
            continue
        place = place_turn[1]
        turns.append((f"where is the {nth} object of the prompt in image {i + 1}?", place))
        place_turns = [place_of(view.scenes[i], o.colour, o.shape, i) for o in view.scenes[i].objects]
        if sum(turn is not None and turn[1] == place for turn in place_turns) == 1:
            turns.append((f"what is {place} in image {i + 1}?", name))
            turns.append((f"which object of the prompt is {place} in image {i + 1}?", nth))
    return turns


def prompted_relation(view: View, i: int) -> Turn | None:
    """Whether the prompt's two objects stand in a random relation; None for prompts without a relation."""
    spec = view.spec
    objects = [_of_kind(view.scenes[i], t.colour, t.shape) for t in spec.terms]
    if spec.relation is None or any(len(same) != 1 for same in objects):
        return None
    relation = RELATIONS[int(view.rng.integers(4))]
    if split_of(replace(spec, relation=relation)) != "train":
        return None
    text = f"is the first object of the prompt {relation} the second in image {i + 1}?"
    return text, _yes(holds(objects[0][0], relation, objects[1][0]))


def _size(view: View, i: int) -> Turn | None:
    objects = view.scenes[i].objects
    if not objects:
        return None
    o = objects[int(view.rng.integers(len(objects)))]
    if len(_of_kind(view.scenes[i], o.colour, o.shape)) != 1:
        return None
    return f"is the {o.colour} {o.shape} in image {i + 1} large?", _yes(o.large)


def matches(view: View, i: int) -> Turn:
    return f"does image {i + 1} match the prompt?", _yes(fulfils(view.scenes[i], view.spec))


def sides_of(view: View, i: int) -> dict[str, bool]:
    """Aspects of a match, and whether the picture agrees with the prompt in each."""
    scene, spec = view.scenes[i], view.spec
    terms, objects = spec.instances(), scene.objects
    sides = {
        "background": scene.background == spec.background,
        "style": scene.style == spec.style,
        "colour": Counter(t.colour for t in terms) == Counter(o.colour for o in objects),
        "objects": Counter((t.colour, t.shape) for t in terms) == Counter((o.colour, o.shape) for o in objects),
    }
    if (spec.relation or spec.arrangement) and kinds(objects) == kinds(terms):
        sides["layout"] = fulfils(replace(scene, style=spec.style, background=spec.background), spec)
    return sides


def about_side(name: str, i: int, right: bool) -> Turn:
    if name in ("background", "style"):  # a single word of the prompt
        return f"is the {name} of image {i + 1} that of the prompt?", _yes(right)
    return f"{'are' if name == 'objects' else 'is'} the {name} of image {i + 1} right?", _yes(right)


def both_places(view: View, i: int) -> list[Turn]:
    """The background or style of the picture, and that of the prompt: the two halves of a comparison."""
    name, spec = view.pick(("background", "style")), view.spec
    turns: list[Turn | None] = [
        (f"what is the {name} of image {i + 1}?", getattr(view.scenes[i], name)),
        (f"what is the {name} of the prompt?", getattr(spec, name)),
    ]
    if spec.relation:
        turns += [("what is the layout of the prompt?", spec.relation)]
        turns += [place_of(view.scenes[i], t.colour, t.shape, i) for t in spec.terms]
    return [t for t in turns if t is not None]


def aspect(view: View, i: int) -> Turn:
    """One aspect of a match; with probability 0.6 one that is wrong, if there is any."""
    sides = sides_of(view, i)
    wrong = tuple(name for name, right in sides.items() if not right)
    name = view.pick(wrong if wrong and view.rng.random() < 0.6 else tuple(sides))
    return about_side(name, i, sides[name])


def _listed(counts: Kinds) -> str | None:
    """Objects in words, "nothing" for none; None where the words are held out."""
    terms = terms_of(counts)
    if any(t.count >= OOD_COUNT for t in terms):
        return None
    return " and ".join(phrase_term(t) for t in terms) or "nothing"


def missing(view: View, i: int) -> Turn | None:
    answer = _listed(kinds(view.spec.instances()) - kinds(view.scenes[i].objects))
    return None if answer is None else (f"what is missing in image {i + 1}?", answer)


def extra(view: View, i: int) -> Turn | None:
    answer = _listed(kinds(view.scenes[i].objects) - kinds(view.spec.instances()))
    return None if answer is None else (f"what is extra in image {i + 1}?", answer)


def _more(view: View, i: int) -> Turn:
    first, second = view.scenes[i], view.scenes[1 - i]
    shape = view.pick((*SHAPES, "objects"))
    counts = [sum(shape in (o.shape, "objects") for o in s.objects) for s in (first, second)]
    text = f"does image {i + 1} have more {shape} than image {2 - i}?"
    return text, _yes(counts[0] > counts[1])


def _same(view: View, i: int) -> Turn:
    def content(s: Scene) -> tuple[object, ...]:
        return frozenset(s.objects), s.style, s.background

    return f"is image {i + 1} the same as image {2 - i}?", _yes(content(view.scenes[0]) == content(view.scenes[1]))


def describe(view: View, i: int) -> Turn | None:
    scene = view.scenes[i]
    plain = listing(scene)
    if plain is None or len(plain.terms) > 3 or split_of(plain) != "train":
        return None
    return f"describe image {i + 1}.", f"{scene.style} drawing of {phrase_body(plain)} on {scene.background}"


ABOUT_ONE: tuple[Callable[[View, int], Turn | None], ...] = (
    _is_there,
    _is_there,
    _how_many,
    _style,
    _where,
    _where,
    relation_asked,
    relation_asked,
    relation_asked,
    _size,
)
ABOUT_TWO: tuple[Callable[[View, int], Turn | None], ...] = (_more, _same)
