"""What a vision-language model knows before it becomes a judge: questions and answers about one and two pictures.

A `Lesson` is a short dialog: an optional prompt, one or two pictures, then several turns of question and
answer. None of them asks for a preference; "does image 1 match the prompt" and "what is missing in image 1" are plain
image-text matching.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewarddance.world.corrupt import Edit, damage_randomly, edit_scene
from rewarddance.world.describe import fulfils, holds, kinds, listing
from rewarddance.world.grammar import NUMBERS, WORDINGS, parse, phrase, phrase_body, phrase_term
from rewarddance.world.reading import read_scene
from rewarddance.world.render import Image, render
from rewarddance.world.sampling import TRAIN_STYLES, sample_pair
from rewarddance.world.scene import BACKGROUNDS, CANVAS, COLOURS, MIRRORED, RELATIONS, SHAPES, Scene, Spec, Term
from rewarddance.world.splits import OOD_COUNT, OOD_KINDS, scene_is_trainable, split_of

Turn = tuple[str, str]
"""(question, answer)"""


@dataclass(frozen=True)
class Lesson:
    prompt: str | None
    images: tuple[Image, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class _View:
    """What the questions are drawn from."""

    scenes: tuple[Scene, ...]
    spec: Spec
    rng: np.random.Generator

    def pick(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def kind(self, scene: Scene) -> Term:
        """A kind to ask about: usually one in the picture, sometimes any trainable one."""
        if scene.objects and self.rng.random() < 0.55:
            o = scene.objects[int(self.rng.integers(len(scene.objects)))]
            return Term(o.colour, o.shape)
        while True:
            colour, shape = self.pick(COLOURS), self.pick(SHAPES)
            if (colour, shape) not in OOD_KINDS:
                return Term(colour, shape)  # type: ignore[arg-type]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _is_there(view: _View, i: int) -> Turn:
    scene = view.scenes[i]
    term = view.kind(scene)
    truth = any((o.colour, o.shape) == (term.colour, term.shape) for o in scene.objects)
    return f"is there {phrase_term(term)} in image {i + 1}?", _yes(truth)


def _how_many(view: _View, i: int) -> Turn:
    objects = view.scenes[i].objects
    if view.rng.random() < 0.5:
        return f"how many objects are in image {i + 1}?", NUMBERS[min(5, len(objects))]
    shape = view.pick(SHAPES)
    return f"how many {shape} in image {i + 1}?", NUMBERS[min(5, sum(o.shape == shape for o in objects))]


def _style(view: _View, i: int) -> Turn:
    scene = view.scenes[i]
    if view.rng.random() < 0.5:
        style = view.pick(TRAIN_STYLES)
        return f"is image {i + 1} {style}?", _yes(scene.style == style)
    background = view.pick(BACKGROUNDS)
    return f"is image {i + 1} on {background}?", _yes(scene.background == background)


def _relation(view: _View, i: int) -> Turn | None:
    objects = view.scenes[i].objects
    if len(objects) < 2:
        return None
    a, b = (objects[k] for k in view.rng.permutation(len(objects))[:2])
    same = [o for o in objects if (o.colour, o.shape) in {(a.colour, a.shape), (b.colour, b.shape)}]
    relation = RELATIONS[int(view.rng.integers(4))]
    if len(same) != 2 or (a.colour, a.shape) == (b.colour, b.shape):
        return None
    asked = Spec(
        (Term(a.colour, a.shape, 1, a.large), Term(b.colour, b.shape, 1, b.large)),
        view.scenes[i].style,
        view.scenes[i].background,
        relation,
    )
    if split_of(asked) != "train":
        return None
    text = f"{a.colour} {a.shape} {relation} the {b.colour} {b.shape}"
    return f"is the {text} in image {i + 1}?", _yes(holds(a, relation, b))


def _where(view: _View, i: int) -> Turn | None:
    """In which third of the picture an object stands, across and down; to say how two stand, one has to know first."""
    objects = view.scenes[i].objects
    if not objects:
        return None
    o = objects[int(view.rng.integers(len(objects)))]
    return _place_of(view.scenes[i], o.colour, o.shape, i)


def _place_of(scene: Scene, colour: str, shape: str, i: int) -> Turn | None:
    """None for objects that are not there once, and for the middle of the picture."""
    found = [o for o in scene.objects if (o.colour, o.shape) == (colour, shape)]
    if len(found) != 1:
        return None
    third = CANVAS / 3
    across = "left" if found[0].x < third else "right" if found[0].x > 2 * third else ""
    down = "above" if found[0].y < third else "below" if found[0].y > 2 * third else ""
    answer = f"{across} {down}".strip()
    return (f"where is the {colour} {shape} in image {i + 1}?", answer) if answer else None


def _size(view: _View, i: int) -> Turn | None:
    objects = view.scenes[i].objects
    if not objects:
        return None
    o = objects[int(view.rng.integers(len(objects)))]
    if sum((p.colour, p.shape) == (o.colour, o.shape) for p in objects) != 1:
        return None
    return f"is the {o.colour} {o.shape} in image {i + 1} large?", _yes(o.large)


def _matches(view: _View, i: int) -> Turn:
    return f"does image {i + 1} match the prompt?", _yes(fulfils(view.scenes[i], view.spec))


def _sides(view: _View, i: int) -> dict[str, bool]:
    """Sides of a match, and whether the picture has each as the prompt wants it."""
    scene, spec = view.scenes[i], view.spec
    wanted, found = spec.instances(), scene.objects
    sides = {
        "background": scene.background == spec.background,
        "style": scene.style == spec.style,
        "colour": Counter(t.colour for t in wanted) == Counter(o.colour for o in found),
        "objects": Counter((t.colour, t.shape) for t in wanted) == Counter((o.colour, o.shape) for o in found),
    }
    if (spec.relation or spec.arrangement) and kinds(scene) == _wanted(view):
        sides["layout"] = fulfils(replace(scene, style=spec.style, background=spec.background), spec)
    return sides


def _about_side(name: str, i: int, right: bool) -> Turn:
    if name in ("background", "style"):  # one word in the prompt, so that both places can be named
        return f"is the {name} of image {i + 1} that of the prompt?", _yes(right)
    return f"{'are' if name == 'objects' else 'is'} the {name} of image {i + 1} right?", _yes(right)


def _both_places(view: _View, i: int) -> list[Turn]:
    """What stands in the picture and what in the prompt: the two halves of a comparison, each to be found first."""
    name, spec = view.pick(("background", "style")), view.spec
    shown, wanted = getattr(view.scenes[i], name), getattr(spec, name)
    turns: list[Turn | None] = [
        (f"what is the {name} of image {i + 1}?", shown),
        (f"what is the {name} of the prompt?", wanted),
    ]
    if spec.relation:
        turns += [("what is the layout of the prompt?", spec.relation)]
        turns += [_place_of(view.scenes[i], t.colour, t.shape, i) for t in spec.terms]
    return [t for t in turns if t is not None]


def _aspect(view: _View, i: int) -> Turn:
    """One side of a match, more often one that is wrong."""
    sides = _sides(view, i)
    wrong = tuple(name for name, right in sides.items() if not right)
    name = view.pick(wrong if wrong and view.rng.random() < 0.6 else tuple(sides))
    return _about_side(name, i, sides[name])


def _listed(counts: Counter[tuple[str, str, bool]]) -> str | None:
    """Objects in words, "nothing" for none; None where the words would be held out."""
    terms = [Term(c, s, n, large) for (c, s, large), n in sorted(counts.items())]  # type: ignore[arg-type]
    if any(t.count >= OOD_COUNT for t in terms):
        return None
    return " and ".join(phrase_term(t) for t in terms) or "nothing"


def _wanted(view: _View) -> Counter[tuple[str, str, bool]]:
    return Counter((t.colour, t.shape, t.large) for t in view.spec.instances())


def _missing(view: _View, i: int) -> Turn | None:
    answer = _listed(_wanted(view) - kinds(view.scenes[i]))
    return None if answer is None else (f"what is missing in image {i + 1}?", answer)


def _extra(view: _View, i: int) -> Turn | None:
    answer = _listed(kinds(view.scenes[i]) - _wanted(view))
    return None if answer is None else (f"what is extra in image {i + 1}?", answer)


def _more(view: _View, i: int) -> Turn:
    first, second = view.scenes[i], view.scenes[1 - i]
    shape = view.pick((*SHAPES, "objects"))
    counts = [sum(shape in (o.shape, "objects") for o in s.objects) for s in (first, second)]
    text = f"does image {i + 1} have more {shape} than image {2 - i}?"
    return text, _yes(counts[0] > counts[1])


def _same(view: _View, i: int) -> Turn:
    def content(s: Scene) -> tuple[object, ...]:
        return frozenset(s.objects), s.style, s.background

    return f"is image {i + 1} the same as image {2 - i}?", _yes(content(view.scenes[0]) == content(view.scenes[1]))


def _describe(view: _View, i: int) -> Turn | None:
    scene = view.scenes[i]
    plain = listing(scene)
    if plain is None or len(plain.terms) > 3 or split_of(plain) != "train":
        return None
    return f"describe image {i + 1}.", f"{scene.style} drawing of {phrase_body(plain)} on {scene.background}"


_ABOUT_ONE: tuple[Callable[[_View, int], Turn | None], ...] = (
    _is_there,
    _is_there,
    _how_many,
    _style,
    _where,
    _where,
    _relation,
    _relation,
    _relation,
    _size,
)
_ABOUT_TWO: tuple[Callable[[_View, int], Turn | None], ...] = (_more, _same)


_EDIT_WEIGHTS: dict[Edit, float] = {
    "shape": 0.22, "background": 0.14, "colour": 0.12, "style": 0.12, "swap": 0.12, "move": 0.12, "size": 0.06,
    "drop": 0.05, "add": 0.05,
}  # fmt: skip
"""Of edits in lessons: what a matching judge overlooks is shown most (docs/log.md)."""


_HARD_WEIGHTS: dict[Edit, float] = {
    "background": 0.3, "shape": 0.2, "style": 0.18, "colour": 0.08, "swap": 0.07, "move": 0.07, "size": 0.06,
    "drop": 0.02, "add": 0.02,
}  # fmt: skip
"""Of edits in lessons on matching alone."""


def _edit(scene: Scene, spec: Spec, rng: np.random.Generator, weights: Mapping[Edit, float] = _EDIT_WEIGHTS) -> Scene:
    """One thing changed; half the time what a relation or an arrangement hangs on, where one is asked for."""
    if (spec.relation or spec.arrangement) and rng.random() < 0.5:
        kind = "swap" if spec.relation and rng.random() < 0.7 else "move"
    else:
        kind = str(rng.choice(list(weights), p=list(weights.values())))
    try:
        return edit_scene(scene, rng, kind)  # type: ignore[arg-type]
    except RuntimeError:  # a lone object cannot be swapped
        return edit_scene(scene, rng)


def _second_scene(first: Scene, spec: Spec, rng: np.random.Generator) -> Scene:
    """Another scene: the same, one or two edits away, or unrelated."""
    chance = rng.random()
    if chance < 0.1:
        return first
    if chance < 0.8:
        second = _edit(first, spec, rng)
        return _edit(second, spec, rng) if rng.random() < 0.3 else second
    return sample_pair(rng)[1]


def _turns(view: _View, with_prompt: bool, num_questions: int) -> tuple[Turn, ...]:
    rng, count = view.rng, len(view.scenes)
    turns: list[Turn | None] = []
    if with_prompt:
        about_prompt = [(ask, i) for i in range(count) for ask in (_matches, _missing, _extra, _aspect, _aspect)]
        turns += [about_prompt[int(k)][0](view, about_prompt[int(k)][1]) for k in rng.permutation(len(about_prompt))]
    pool = _ABOUT_ONE + _ABOUT_TWO * (count - 1)
    for _ in range(num_questions):
        ask = pool[int(rng.integers(len(pool)))]
        turns.append(ask(view, int(rng.integers(count))))
    turns += [_describe(view, int(i)) for i in rng.permutation(count)]
    unique = dict.fromkeys(t for t in turns if t is not None)
    return tuple(unique)


def lesson(rng: np.random.Generator, num_questions: int = 4) -> Lesson:
    """One random lesson about one (a third of the time) or two trainable scenes.

    In eight of ten a prompt comes first, which the first picture fulfils, or was edited away from; three pictures in
    ten are damaged a little, so that knowledge does not hang on clean renders.
    """
    spec, scene = sample_pair(rng)
    scenes: tuple[Scene, ...] = (_edit(scene, spec, rng) if rng.random() < 0.45 else scene,)
    if rng.random() < 0.67:
        scenes = (scenes[0], _second_scene(scene, spec, rng))
        scenes = scenes[::-1] if rng.random() < 0.5 else scenes
    images = [render(s) for s in scenes]
    images = [damage_randomly(x, rng, most=0.5) if rng.random() < 0.3 else x for x in images]
    with_prompt = bool(rng.random() < 0.8)
    wording = WORDINGS[int(rng.integers(len(WORDINGS)))]
    view = _View(scenes, spec, rng)
    return Lesson(
        phrase(spec, wording) if with_prompt else None, tuple(images), _turns(view, with_prompt, num_questions)
    )


def _on_white(spec: Spec, scene: Scene) -> tuple[Spec, Scene]:
    """The same on white, where that may be shown.

    While every background is as likely in prompts as in pictures, neither says anything about their match by itself,
    and there is no slope towards looking at either. With many prompts on white, a black picture alone is suspect.
    """
    white, drawn = replace(spec, background="white"), replace(scene, background="white")
    return (white, drawn) if split_of(white) == "train" and scene_is_trainable(drawn) else (spec, scene)


def _leaning(spec: Spec) -> Spec:
    """The same relation told from the other object, so that it is "left of" or "above": most then are (see above)."""
    if spec.relation not in MIRRORED:
        return spec
    return replace(spec, terms=spec.terms[::-1], relation=MIRRORED[spec.relation])


def matching_lesson(rng: np.random.Generator) -> Lesson:
    """A lesson on nothing but whether pictures match a prompt, and on which side they do not; yes as often as no.

    To compare a word of the prompt with what a picture shows is the last thing that a small model learns: it told
    backgrounds apart without fault long before it minded that one was not the prompt's (docs/log.md).
    """
    spec, scene = sample_pair(rng, "relation" if rng.random() < 0.3 else None)
    if rng.random() < 0.4:
        spec, scene = _on_white(_leaning(spec), scene)
    scenes = tuple(
        _edit(scene, spec, rng, _HARD_WEIGHTS) if rng.random() < 0.6 else scene
        for _ in range(1 if rng.random() < 0.7 else 2)
    )
    view = _View(scenes, spec, rng)
    turns: list[Turn] = []
    for i in range(len(scenes)):
        turns.append(_matches(view, i))
        sides = _sides(view, i)
        wrong = [name for name, right in sides.items() if not right]
        right = [name for name in sides if name not in wrong]
        chosen = [right[int(k)] for k in rng.permutation(len(right))[: max(1, len(wrong))]]
        turns += [_about_side(name, i, sides[name]) for name in (*wrong, *chosen)]
        turns += _both_places(view, i)
    images = tuple(render(s) for s in scenes)
    wording = WORDINGS[int(rng.integers(len(WORDINGS)))]
    return Lesson(phrase(spec, wording), images, tuple(dict.fromkeys(turns)))


def lesson_on(prompt: str, images: Sequence[Image], rng: np.random.Generator, num_questions: int = 4) -> Lesson | None:
    """A lesson about pictures that a generator drew for a prompt, captioned by reading their pixels.

    Takes two of the pictures, or one of them a third of the time, as `lesson` does.

    Returns:
        None where a picture is in doubt (`read_scene`), or shows what is held out.
    """
    chosen = [images[int(i)] for i in rng.permutation(len(images))[: 1 if rng.random() < 0.33 else 2]]
    scenes = [scene for scene in map(read_scene, chosen) if scene is not None and scene_is_trainable(scene)]
    if len(scenes) < len(chosen):
        return None
    with_prompt = bool(rng.random() < 0.7)
    turns = _turns(_View(tuple(scenes), parse(prompt), rng), with_prompt, num_questions)
    return Lesson(prompt if with_prompt else None, tuple(chosen), turns) if turns else None
