"""What a vision-language model knows before it becomes a judge: lessons made of the questions of `questions.py`.

A `Lesson` is a short dialog: an optional prompt, one or two pictures, then several turns of question and answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewarddance.world.corrupt import Edit, damage_randomly, edit_scene
from rewarddance.world.describe import fulfils
from rewarddance.world.grammar import WORDINGS, parse, phrase
from rewarddance.world.questions import (
    ABOUT_ONE,
    ABOUT_TWO,
    Turn,
    View,
    about_side,
    aspect,
    both_places,
    describe,
    extra,
    matches,
    missing,
    place_of,
    prompted_objects,
    prompted_relation,
    relation_asked,
    sides_of,
)
from rewarddance.world.reading import read_scene
from rewarddance.world.render import Image, render
from rewarddance.world.sampling import sample_pair
from rewarddance.world.scene import MIRRORED, Scene, Spec
from rewarddance.world.splits import scene_is_trainable, split_of


@dataclass(frozen=True)
class Lesson:
    """Turns about pictures and, where there is one, a prompt; `request` says before all of it how to answer."""

    prompt: str | None
    images: tuple[Image, ...]
    turns: tuple[Turn, ...]
    request: str | None = None


YES_OR_NO = "answer yes or no."


def yes_or_no(found: Lesson) -> Lesson:
    """The lesson's questions of that kind alone, after the request to answer so; the lesson itself where it has none.

    They are put as a judge puts them, after the word "question:". One word that a small VLM has never met before its
    answer can make it name a colour where yes or no was asked for (docs/log.md).
    """
    turns = tuple((f"question: {q}", a) for q, a in found.turns if a in ("yes", "no"))
    return replace(found, turns=turns, request=YES_OR_NO) if turns else found


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


def _turns(view: View, with_prompt: bool, num_questions: int) -> tuple[Turn, ...]:
    rng, count = view.rng, len(view.scenes)
    turns: list[Turn | None] = []
    if with_prompt:
        about_prompt = [(ask, i) for i in range(count) for ask in (matches, missing, extra, aspect, aspect)]
        turns += [about_prompt[int(k)][0](view, about_prompt[int(k)][1]) for k in rng.permutation(len(about_prompt))]
    pool = ABOUT_ONE + ABOUT_TWO * (count - 1)
    for _ in range(num_questions):
        ask = pool[int(rng.integers(len(pool)))]
        turns.append(ask(view, int(rng.integers(count))))
    turns += [describe(view, int(i)) for i in rng.permutation(count)]
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
    view = View(scenes, spec, rng)
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
    view = View(scenes, spec, rng)
    turns: list[Turn] = []
    for i in range(len(scenes)):
        turns.append(matches(view, i))
        sides = sides_of(view, i)
        wrong = [name for name, right in sides.items() if not right]
        right = [name for name in sides if name not in wrong]
        chosen = [right[int(k)] for k in rng.permutation(len(right))[: max(1, len(wrong))]]
        turns += [about_side(name, i, sides[name]) for name in (*wrong, *chosen)]
        turns += both_places(view, i)
    images = tuple(render(s) for s in scenes)
    wording = WORDINGS[int(rng.integers(len(WORDINGS)))]
    return Lesson(phrase(spec, wording), images, tuple(dict.fromkeys(turns)))


def _rearranged(scene: Scene, spec: Spec, rng: np.random.Generator) -> Scene:
    """The same objects, not standing as the prompt wants; as they were where that cannot be had in a few tries."""
    for _ in range(6):
        try:
            found = edit_scene(scene, rng, "swap" if spec.relation and rng.random() < 0.7 else "move")
        except RuntimeError:  # no room
            continue
        if not fulfils(found, spec):
            return found
    return scene


def relation_lesson(rng: np.random.Generator) -> Lesson:
    """A lesson on nothing but how objects stand: where each is, what the prompt says of them, and whether it is so.

    Among all other lessons these are never learnt, by themselves in minutes (docs/log.md).
    """
    spec, scene = sample_pair(rng, "relation" if rng.random() < 0.75 else "concept")
    spec = _leaning(spec) if rng.random() < 0.5 else spec
    if rng.random() < 0.5:
        scene = _rearranged(scene, spec, rng)
    view = View((scene,), spec, rng)
    halves = [place_of(scene, o.colour, o.shape, 0) for o in scene.objects]
    wholes = [relation_asked(view, 0)]
    sides = sides_of(view, 0)
    if spec.relation:
        halves += [("what is the layout of the prompt?", spec.relation), *prompted_objects(view, 0)]
        wholes += [prompted_relation(view, 0) for _ in range(2)]
    if "layout" in sides:
        wholes += [about_side("layout", 0, sides["layout"]), matches(view, 0)]
    halves = [halves[int(k)] for k in rng.permutation(len(halves))[:6]]
    found = tuple(dict.fromkeys(t for t in (*halves, *wholes) if t is not None))
    wording = WORDINGS[int(rng.integers(len(WORDINGS)))]
    return Lesson(phrase(spec, wording), (render(scene),), found) if found else relation_lesson(rng)


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
    turns = _turns(View(tuple(scenes), parse(prompt), rng), with_prompt, num_questions)
    return Lesson(prompt if with_prompt else None, tuple(chosen), turns) if turns else None
