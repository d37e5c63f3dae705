"""Lessons for a vision-language model before it becomes a judge, made of the questions of `questions.py`.

A `Lesson` is a short dialog: an optional prompt, one or two pictures, then several turns of question and answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewarddance.world.corrupt import Edit, damage_randomly, edit_scene
from rewarddance.world.describe import fulfils
from rewarddance.world.grammar import parse, random_phrase
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
    """Turns about pictures or clips, and maybe a prompt. `request` is an instruction before them on how to answer.

    Attributes:
        images: uint8, pictures (H, W, 3) or clips (F, H, W, 3).
    """

    prompt: str | None
    images: tuple[Image, ...]
    turns: tuple[Turn, ...]
    request: str | None = None


YES_OR_NO = "answer yes or no."


def yes_or_no(lesson: Lesson) -> Lesson:
    """The lesson's yes-or-no questions alone, after a request to answer so; the same lesson where it has none.

    As in a judge's dialogs, the word "question:" comes before each question. A single new word before the answer can
    make a small VLM answer a yes-or-no question with a colour (docs/log.md).
    """
    turns = tuple((f"question: {q}", a) for q, a in lesson.turns if a in ("yes", "no"))
    return replace(lesson, turns=turns, request=YES_OR_NO) if turns else lesson


_EDIT_WEIGHTS: dict[Edit, float] = {
    "shape": 0.22, "background": 0.14, "colour": 0.12, "style": 0.12, "swap": 0.12, "move": 0.12, "size": 0.06,
    "drop": 0.05, "add": 0.05,
}  # fmt: skip
"""Weights of edits in lessons. Changes that matching VLMs overlook are drawn most often (docs/log.md)."""

_HARD_WEIGHTS: dict[Edit, float] = {
    "background": 0.3, "shape": 0.2, "style": 0.18, "colour": 0.08, "swap": 0.07, "move": 0.07, "size": 0.06,
    "drop": 0.02, "add": 0.02,
}  # fmt: skip
"""Weights of edits in lessons on matching alone."""


def _edit(scene: Scene, spec: Spec, rng: np.random.Generator, weights: Mapping[Edit, float] = _EDIT_WEIGHTS) -> Scene:
    """One edit. For prompts with a relation or an arrangement, half of the edits move objects."""
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
    """One random lesson about one scene (a third of the lessons) or two trainable scenes.

    Eight lessons in ten begin with a prompt. One picture fulfils it, or is an edit of one that does. Three pictures in
    ten are slightly damaged, so that the VLM does not depend on clean renders.
    """
    spec, scene = sample_pair(rng)
    scenes: tuple[Scene, ...] = (_edit(scene, spec, rng) if rng.random() < 0.45 else scene,)
    if rng.random() < 0.67:
        scenes = (scenes[0], _second_scene(scene, spec, rng))
        scenes = scenes[::-1] if rng.random() < 0.5 else scenes
    images = [render(s) for s in scenes]
    images = [damage_randomly(x, rng, most=0.5) if rng.random() < 0.3 else x for x in images]
    with_prompt = bool(rng.random() < 0.8)
    prompt = random_phrase(spec, rng)
    turns = _turns(View(scenes, spec, rng), with_prompt, num_questions)
    return Lesson(prompt if with_prompt else None, tuple(images), turns)


def _on_white(spec: Spec, scene: Scene) -> tuple[Spec, Scene]:
    """The same on white, where this is trainable.

    If all backgrounds are equally frequent in prompts and in pictures, neither alone predicts a match, and a VLM has no
    gradient towards looking at one of them. With many prompts on white, a black picture alone predicts a mismatch.
    """
    white_spec, white_scene = replace(spec, background="white"), replace(scene, background="white")
    trainable = split_of(white_spec) == "train" and scene_is_trainable(white_scene)
    return (white_spec, white_scene) if trainable else (spec, scene)


def _leaning(spec: Spec) -> Spec:
    """The same relation as "left of" or "above", so that these are the more frequent ones (see `_on_white`)."""
    if spec.relation not in MIRRORED:
        return spec
    return replace(spec, terms=spec.terms[::-1], relation=MIRRORED[spec.relation])


def matching_lesson(rng: np.random.Generator) -> Lesson:
    """A lesson on matching alone: whether pictures match a prompt, and in which aspects. Yes is as frequent as no.

    A small model learns last to compare a word of the prompt with the picture. It named all backgrounds correctly long
    before it noticed that a background was not the prompt's (docs/log.md).
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
    return Lesson(random_phrase(spec, rng), tuple(render(s) for s in scenes), tuple(dict.fromkeys(turns)))


def _rearranged(scene: Scene, spec: Spec, rng: np.random.Generator) -> Scene:
    """The same objects in places that contradict the prompt; the scene itself if six tries find none."""
    for _ in range(6):
        try:
            edited = edit_scene(scene, rng, "swap" if spec.relation and rng.random() < 0.7 else "move")
        except RuntimeError:  # no room
            continue
        if not fulfils(edited, spec):
            return edited
    return scene


def relation_lesson(rng: np.random.Generator) -> Lesson:
    """A lesson on layout alone: where objects are, what the prompt says about it, and whether the picture agrees.

    Mixed with all other lessons these are not learnt. Alone they are learnt in minutes (docs/log.md).
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
    turns = tuple(dict.fromkeys(t for t in (*halves, *wholes) if t is not None))
    prompt = random_phrase(spec, rng)
    return Lesson(prompt, (render(scene),), turns) if turns else relation_lesson(rng)


def lesson_on(prompt: str, images: Sequence[Image], rng: np.random.Generator, num_questions: int = 4) -> Lesson | None:
    """A lesson about pictures that a generator drew for a prompt. Their scenes are read from pixels.

    It is about two of the pictures, or about one in a third of the lessons, as in `lesson`.

    Returns:
        None where the scene of a picture is uncertain (`read_scene`) or held out.
    """
    chosen = [images[int(i)] for i in rng.permutation(len(images))[: 1 if rng.random() < 0.33 else 2]]
    scenes = [scene for scene in map(read_scene, chosen) if scene is not None and scene_is_trainable(scene)]
    if len(scenes) < len(chosen):
        return None
    with_prompt = bool(rng.random() < 0.7)
    turns = _turns(View(tuple(scenes), parse(prompt), rng), with_prompt, num_questions)
    return Lesson(prompt if with_prompt else None, tuple(chosen), turns) if turns else None
