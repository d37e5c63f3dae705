"""Lessons about clips for a vision-language model: what objects do, how fast, and whether a clip matches a prompt.

The turns have the form of those about pictures (`world/lessons.py`), with clips in place of pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewarddance.world.lessons import YES_OR_NO, Lesson
from rewarddance.world.motion.corrupt import Damage, Edit, damage, edit_scene
from rewarddance.world.motion.grammar import WORDINGS, does, phrase
from rewarddance.world.motion.render import Clip, render
from rewarddance.world.motion.sampling import TRAIN_ACTIONS, sample_pair
from rewarddance.world.motion.scene import Act, Actor, MotionScene, MotionSpec
from rewarddance.world.motion.splits import scene_is_trainable, split_of
from rewarddance.world.questions import Turn
from rewarddance.world.scene import CANVAS

EVERY = 2
"""Lessons show every second frame: 0, 2, 4, 6, 8, as judges of clips see them at 4 frames a second."""
DAMAGES: tuple[Damage, ...] = ("flicker", "freeze", "shuffle")
"""Damage that no act explains. A reversed clip may show another act without a fault."""

ORDERED = 0.1
"""Share of the undamaged clips with a question about the order of their frames. About 5% of all clips are shuffled, so
there are two answers "yes" for one "no".
"""


@dataclass(frozen=True)
class ShownClip:
    """A clip of a lesson: its scene, the damage of its frames (None: no damage), and the frames."""

    scene: MotionScene
    damage: Damage | None
    frames: Clip

    @property
    def damaged(self) -> bool:
        return self.damage is not None

    @property
    def acts(self) -> tuple[Act, ...]:
        return self.scene.listing.acts

    def fulfils(self, spec: MotionSpec) -> bool:
        """Whether the clip is free of faults and shows what a specification asks for, and nothing else."""
        return not any(self.faults(spec))

    def faults(self, spec: MotionSpec) -> tuple[bool, ...]:
        """For each of background, style, objects, motion, speed, ghosts and damaged frames, whether the clip has this
        fault.

        If the objects are wrong, the motion counts as wrong too. If the motion is wrong, an asked speed counts as wrong
        too.
        """
        right = dict(sides(self.scene, spec))
        right.setdefault("motion", False)
        right.setdefault("speed", not any(a.speed for a in spec.acts))
        wrong = [not right[name] for name in ("background", "style", "objects", "motion", "speed")]
        return (*wrong, bool(self.scene.ghosts), self.damaged)


def sides(scene: MotionScene, spec: MotionSpec) -> Iterator[tuple[str, bool]]:
    """The aspects of a match, and whether a scene agrees with a specification in each.

    `motion` is compared only if the objects are right. `speed` is compared only if the motion is right too and the
    specification names a speed.
    """
    shown, required_acts = scene.listing.acts, spec.acts
    yield "background", scene.background == spec.background
    yield "style", scene.style == spec.style
    by_kind = {(a.colour, a.shape): a for a in shown}
    objects = sorted(by_kind) == sorted((a.colour, a.shape) for a in required_acts)
    yield "objects", objects
    if objects:
        pairs = [(by_kind[a.colour, a.shape], a) for a in required_acts]
        motion = all((s.action, s.into) == (a.action, a.into) for s, a in pairs)
        yield "motion", motion
        if motion and any(a.speed for a in required_acts):
            yield "speed", all(a.speed in (None, s.speed) for s, a in pairs)


def _yes(right: bool) -> str:
    return "yes" if right else "no"


def _name(act: Act) -> str:
    return f"{act.colour} {act.shape}"


Ask = Callable[[ShownClip, int, np.random.Generator], Turn | None]


def _action(clip: ShownClip, i: int, rng: np.random.Generator) -> Turn:
    act = clip.acts[int(rng.integers(len(clip.acts)))]
    return f"what does the {_name(act)} of image {i} do?", does(act)


def _is_doing(clip: ShownClip, i: int, rng: np.random.Generator) -> Turn:
    act = clip.acts[int(rng.integers(len(clip.acts)))]
    action = act.action if rng.random() < 0.5 else TRAIN_ACTIONS[int(rng.integers(len(TRAIN_ACTIONS)))]
    return f"is the {_name(act)} of image {i} {action}?", _yes(action == act.action)


def _speed(clip: ShownClip, i: int, rng: np.random.Generator) -> Turn | None:
    timed = [act for act in clip.acts if act.speed is not None]
    if not timed:
        return None
    act = timed[int(rng.integers(len(timed)))]
    return f"is the {_name(act)} of image {i} fast or slow?", str(act.speed)


def _background(clip: ShownClip, i: int, rng: np.random.Generator) -> Turn:
    return f"what is the background of image {i}?", clip.scene.background


def _describe(clip: ShownClip, i: int, rng: np.random.Generator) -> Turn | None:
    listing = clip.scene.listing
    return (f"describe image {i}.", phrase(listing)) if split_of(listing) == "train" else None


ABOUT_ONE: tuple[Ask, ...] = (_action, _action, _is_doing, _is_doing, _speed, _background, _describe)


_LEAST_WAY = 4.0
"""The answer to a question about two frames is yes if the object moved or grew by at least this many pixels."""


def between_frames(actor: Actor, i: int, rng: np.random.Generator) -> Iterator[Turn]:
    """What the first and the last shown frame say about an object: the parts that an action is made of."""
    first, last = actor.poses[0], actor.poses[-1]
    number = 1 + (len(actor.poses) - 1) // EVERY
    name = _name(actor.act)
    for frame, pose in ((1, first), (number, last)):
        shown = pose.visible and pose.colour == actor.act.colour
        yield f"is the {name} in frame {frame} of image {i}?", _yes(shown)
        if shown:
            side = "left" if pose.x < CANVAS / 2 else "right"
            yield f"is the {name} in frame {frame} of image {i} left or right?", side
            half = "top" if pose.y < CANVAS / 2 else "bottom"
            yield f"is the {name} in frame {frame} of image {i} at the top or bottom?", half
    if first.visible and last.visible and first.colour == last.colour:
        changes = {
            "further left": first.x - last.x,
            "further right": last.x - first.x,
            "higher": first.y - last.y,
            "lower": last.y - first.y,
            "larger": last.size - first.size,
            "smaller": first.size - last.size,
        }
        clear = [(words, by) for words, by in changes.items() if abs(by) >= _LEAST_WAY or abs(by) < 1]
        yes = [(words, by) for words, by in clear if by >= _LEAST_WAY]
        no = [(words, by) for words, by in clear if by < _LEAST_WAY]
        answers = yes + [no[int(k)] for k in rng.permutation(len(no))[: max(1, len(yes))]]
        for words, by in answers:
            question = f"is the {name} of image {i} {words} in frame {number} than in frame 1?"
            yield question, _yes(by >= _LEAST_WAY)


def action_lesson(rng: np.random.Generator) -> Lesson:
    """A lesson about one clip without a prompt: where objects are in its frames, what they do, and how fast.

    Actions are not learnt if few of the questions are about them (docs/log.md).
    """
    scene = sample_pair(rng)[1]
    clip = _shown(scene, rng, 0.0)
    turns: list[Turn] = []
    for actor, act in zip(scene.actors, clip.acts, strict=True):
        turns += [*between_frames(actor, 1, rng), (f"what does the {_name(act)} of image 1 do?", does(act))]
        others = [a for a in TRAIN_ACTIONS if a != act.action]
        for action in (act.action, others[int(rng.integers(len(others)))]):
            turns.append((f"is the {_name(act)} of image 1 {action}?", _yes(action == act.action)))
        if act.speed is not None:
            turns.append((f"is the {_name(act)} of image 1 fast or slow?", act.speed))
    return Lesson(None, (clip.frames,), tuple(dict.fromkeys(turns)))


def better(clips: Sequence[ShownClip], spec: MotionSpec) -> int | None:
    """Which of two clips is better for a specification, 0 or 1. The faults of the better clip are a proper subset of
    the other's faults. None if neither clip is better in this sense.
    """
    first, second = (clip.faults(spec) for clip in clips)
    less = [all(a <= b for a, b in zip(x, y, strict=True)) for x, y in ((first, second), (second, first))]
    return None if less[0] == less[1] else int(less[1])


def _about_prompt(clips: Sequence[ShownClip], spec: MotionSpec, rng: np.random.Generator) -> list[Turn]:
    turns: list[Turn] = []
    for i, clip in enumerate(clips, 1):
        turns.append((f"does image {i} match the prompt?", _yes(clip.fulfils(spec))))
        if clip.damaged:
            continue
        aspects = list(sides(clip.scene, spec))
        wrong = [name for name, right in aspects if not right]
        right = [name for name, right in aspects if right]
        chosen = [right[int(k)] for k in rng.permutation(len(right))[: max(1, len(wrong))]]
        for name in (*wrong, *chosen):
            verb = "are" if name == "objects" else "is"
            turns.append((f"{verb} the {name} of image {i} right?", _yes(name in right)))
    if len(clips) == 2 and (best := better(clips, spec)) is not None:
        turns += [(f"question: is image {i + 1} the better one?", _yes(i == best)) for i in (0, 1)]
    return turns


def _shown(scene: MotionScene, rng: np.random.Generator, damaged: float) -> ShownClip:
    clean = frames = render(scene)
    kind: Damage | None = None
    if rng.random() < damaged:
        kind = DAMAGES[int(rng.integers(len(DAMAGES)))]
        frames = damage(clean, kind, float(rng.uniform(0.5, 1)), rng)
    shown = frames[::EVERY]
    # a still scene stays as it is when its frames freeze or change places
    return ShownClip(scene, None if np.array_equal(shown, clean[::EVERY]) else kind, shown)


def in_order(shown: Clip, clean: Clip) -> bool:
    """Whether `shown` are frames of `clean` in their order. A frame may occur several times."""
    begin = 0
    for frame in shown:
        later = [k for k in range(begin, len(clean)) if np.array_equal(clean[k], frame)]
        if not later:
            return False
        begin = later[0]
    return True


def _edited(scene: MotionScene, rng: np.random.Generator) -> MotionScene:
    try:
        return edit_scene(scene, rng, accept=scene_is_trainable)
    except RuntimeError:  # no edit of this scene may be shown
        return scene


def clip_lesson(rng: np.random.Generator, num_questions: int = 4) -> Lesson:
    """One random lesson about one or two clips of trainable scenes.

    Nine in ten begin with a prompt.

    Args:
        num_questions: about every clip, in addition to those about the prompt.
    """
    spec, scene = sample_pair(rng)
    scenes = [_edited(scene, rng) if rng.random() < 0.5 else scene]
    if rng.random() < 0.6:
        scenes.append(_edited(scene, rng) if rng.random() < 0.7 else scene)
    clips = [_shown(s, rng, 0.15) for s in scenes]
    turns: list[Turn | None] = []
    with_prompt = bool(rng.random() < 0.9)
    if with_prompt:
        turns += _about_prompt(clips, spec, rng)
    for i, clip in enumerate(clips, 1):
        turns.append((f"are the frames of image {i} smooth?", _yes(not clip.damaged)))
        shuffled = clip.damage == "shuffle" and not in_order(clip.frames, render(clip.scene))
        if shuffled or (not clip.damaged and rng.random() < ORDERED):
            turns.append((f"are the frames of image {i} in order?", _yes(not shuffled)))
        if not clip.damaged:
            asks = [ABOUT_ONE[int(k)] for k in rng.integers(len(ABOUT_ONE), size=num_questions)]
            turns += [ask(clip, i, rng) for ask in asks]
    prompt = phrase(spec, WORDINGS[int(rng.integers(len(WORDINGS)))])
    unique = tuple(dict.fromkeys(t for t in turns if t is not None))
    return Lesson(prompt if with_prompt else None, tuple(c.frames for c in clips), unique)


INSTRUCTION = "instruction: prefer the better clip for the prompt."
"""The sentence about overall quality that judges of clips begin with."""
_WRONG_PROMPTS: dict[Edit, float] = {
    "direction": 0.26, "action": 0.22, "speed": 0.16, "freeze": 0.1, "object": 0.08, "colour": 0.06, "style": 0.06,
    "background": 0.06,
}  # fmt: skip
"""How often each edit makes a wrong prompt of a clip. Motion is what judges overlook."""


def prompts_lesson(rng: np.random.Generator) -> Lesson:
    """A lesson about one clip and several prompts, in the form of a judge's question: does the clip match each of them?

    The prompts come after the clip, so one clip is asked about many. A wrong prompt differs in one thing from what the
    clip shows, so only this difference decides the answer. A damaged clip, one in eight, matches no prompt. About four
    in ten of the answers about prompts are yes.
    """
    scene = sample_pair(rng)[1]
    clip = _shown(scene, rng, 0.125)
    wrong = [w for w in (_wrong_prompt(scene, rng) for _ in range(4)) if w is not None]
    right = [_asked(scene.listing, rng) for _ in range(1 if clip.damaged else max(1, len(wrong)))]
    turns: list[Turn] = []
    for spec in [*right] if clip.damaged else [*right, *wrong]:
        prompt = phrase(spec, WORDINGS[int(rng.integers(len(WORDINGS)))])
        turns.append((f"prompt: {prompt}\nquestion: does image 1 match the prompt?", _yes(clip.fulfils(spec))))
    turns.append(("question: are the frames of image 1 smooth?", _yes(not clip.damaged)))
    turns = [turns[int(k)] for k in rng.permutation(len(turns))]
    return Lesson(None, (clip.frames,), tuple(dict.fromkeys(turns)), f"{INSTRUCTION}\n{YES_OR_NO}")


def _wrong_prompt(scene: MotionScene, rng: np.random.Generator) -> MotionSpec | None:
    """A trainable specification that a scene fulfils in all but one thing; None if the drawn edit gives none."""
    kinds, weights = list(_WRONG_PROMPTS), np.array(list(_WRONG_PROMPTS.values()))
    edit = kinds[int(rng.choice(len(kinds), p=weights))]
    try:
        spec = edit_scene(scene, rng, edit, accept=scene_is_trainable).listing
    except RuntimeError:
        return None
    return spec if edit == "speed" else _asked(spec, rng)


def _asked(spec: MotionSpec, rng: np.random.Generator) -> MotionSpec:
    """The specification; with probability 1/2 without its speeds."""
    if rng.random() < 0.5:
        return spec
    return replace(spec, acts=tuple(replace(act, speed=None) for act in spec.acts))
