"""Lessons about clips: their answers are true of the pixels, and those about prompts agree with the oracle."""

from collections import Counter
from dataclasses import replace

import numpy as np

from rewarddance.reward.context import Context
from rewarddance.world.lessons import YES_OR_NO
from rewarddance.world.motion.grammar import parse, parse_act
from rewarddance.world.motion.lessons import (
    INSTRUCTION,
    ShownClip,
    _shown,
    action_lesson,
    better,
    between_frames,
    clip_lesson,
    in_order,
    prompts_lesson,
)
from rewarddance.world.motion.oracle import fidelity, judge
from rewarddance.world.motion.render import render
from rewarddance.world.motion.sampling import place
from rewarddance.world.motion.scene import ACTIONS, Act, Actor, MotionScene, MotionSpec, Pose
from rewarddance.world.motion.splits import split_of


def test_frames_that_stay_in_order_are_not_called_shuffled():
    clean = np.arange(9, dtype=np.uint8)[:, None, None, None]
    assert in_order(clean[[0, 3, 4, 6, 8]], clean)
    assert not in_order(clean[[0, 4, 3, 6, 8]], clean)
    swings = clean[[0, 1, 2, 1, 0, 1, 2, 1, 0]]  # a frame that comes again
    assert in_order(swings[::2], swings)
    assert in_order(swings[[0, 0, 2, 4, 6]], swings)
    assert not in_order(swings[[2, 0, 2, 0, 2]], swings)


def test_lessons_about_clips_are_true():
    """Answers agree with the scene: actions and speeds of its acts, matches with the prompt's specification."""
    rng = np.random.default_rng(0)
    seen, values = Counter(), []
    for _ in range(300):
        lesson = clip_lesson(rng)
        assert all(clip.shape == (5, 48, 48, 3) for clip in lesson.images)
        answers = dict(lesson.turns)
        for i in range(1, len(lesson.images) + 1):
            seen["in order", answers.get(f"are the frames of image {i} in order?")] += 1
            smooth = answers[f"are the frames of image {i} smooth?"]
            assert answers.get(f"are the frames of image {i} in order?", smooth) == smooth
            text = answers.get(f"describe image {i}.")
            if text is None or lesson.prompt is None:
                continue
            listing, asked = parse(text), parse(lesson.prompt)
            anyhow = replace(listing, acts=tuple(replace(act, speed=None) for act in listing.acts))
            values.append(fidelity(lesson.images[i - 1], anyhow, 4.0))
            matches = answers[f"does image {i} match the prompt?"] == "yes"
            same = sorted(a.action for a in listing.acts) == sorted(a.action for a in asked.acts)
            assert same or not matches
            if matches:
                assert (listing.style, listing.background) == (asked.style, asked.background)
            seen[matches] += 1
        better = [answers.get(f"question: is image {i} the better one?") for i in (1, 2)]
        assert better in ([None, None], ["yes", "no"], ["no", "yes"])
        seen["better"] += better[0] is not None
    assert min(seen[True], seen[False], seen["better"]) > 20
    assert min(seen["in order", "yes"], seen["in order", "no"]) > 8
    assert np.mean(values) > 0.9  # the oracle sees five frames


def test_questions_between_frames_follow_the_poses():
    poses = tuple(Pose("red", 10 + 3.5 * k, 30, 12) for k in range(9))  # 28 pixels to the right, at one height
    actor = Actor(Act("red", "circle", "moving right", "fast"), poses)
    answers = dict(between_frames(actor, 2, np.random.default_rng(0)))
    assert answers["is the red circle in frame 5 of image 2?"] == "yes"
    assert answers["is the red circle in frame 1 of image 2 left or right?"] == "left"
    assert answers["is the red circle in frame 5 of image 2 left or right?"] == "right"
    assert answers["is the red circle in frame 1 of image 2 at the top or bottom?"] == "bottom"
    assert answers["is the red circle of image 2 further right in frame 5 than in frame 1?"] == "yes"
    changes = [a for q, a in answers.items() if "than in frame 1" in q]
    assert changes.count("yes") == changes.count("no") == 1
    gone = (*poses[:5], *(replace(p, visible=False) for p in poses[5:]))
    hidden = dict(between_frames(Actor(Act("red", "circle", "disappearing"), gone), 1, np.random.default_rng(0)))
    assert hidden["is the red circle in frame 5 of image 1?"] == "no"
    assert not any("frame 5 of image 1 left" in q or "than in frame 1" in q for q in hidden)


def test_lessons_about_actions_name_the_acts_of_the_clip():
    """The oracle agrees with the named action of every object, at any speed."""
    values, rng = [], np.random.default_rng(1)
    for _ in range(40):
        lesson = action_lesson(rng)
        asked = [(q, a) for q, a in lesson.turns if q.startswith("what does the")]
        said = {q.removeprefix("what does the ").removesuffix(" of image 1 do?"): a for q, a in asked}
        spec = sorted(f"a {name} {does}" for name, does in said.items())
        assert lesson.prompt is None
        assert len(lesson.images) == 1
        for question, answer in lesson.turns:  # they agree with what the object is said to do
            for name, does in said.items():
                words = does.split()
                if question == f"is the {name} of image 1 fast or slow?":
                    assert words[0] == {"fast": "quickly", "slow": "slowly"}[answer]
                action = question.removeprefix(f"is the {name} of image 1 ").removesuffix("?")
                if action in ACTIONS:
                    named = does.removeprefix("quickly ").removeprefix("slowly ")
                    assert named.startswith(action) == (answer == "yes")
        if any("circling" in act for act in spec):
            continue
        acts = tuple(replace(parse_act(act), speed=None) for act in spec)
        values.append(judge(lesson.images[0], MotionSpec(acts), 4.0).motion)
    assert np.mean(values) > 0.9


def test_a_clip_is_called_damaged_where_its_damage_shows():
    """Frames of a still scene that freeze or change places are the same frames."""
    rng = np.random.default_rng(0)
    still = place(MotionSpec((Act("red", "circle", "staying still"),), "flat", "white"), rng)
    clean, seen = render(still)[::2], Counter()
    for _ in range(30):
        clip = _shown(still, rng, damaged=1.0)
        assert clip.damaged == (not np.array_equal(clip.frames, clean))
        seen[clip.damaged] += 1
    assert min(seen[True], seen[False]) > 5


RIGHT = MotionSpec((Act("red", "circle", "moving right", "fast"),), "flat", "white")
NOTHING_WRONG = (False,) * 7


def shown(act=RIGHT.acts[0], style="flat", background="white", damage=None):
    scene = place(MotionSpec((act,), style, background), np.random.default_rng(0))
    return ShownClip(scene, damage, render(scene)[::2])


def test_faults_are_found_by_kind():
    """In the order background, style, objects, motion, speed, ghosts, damage."""
    red = RIGHT.acts[0]
    cases = {
        (0, 0, 0, 0, 0, 0, 0): shown(),
        (1, 0, 0, 0, 0, 0, 0): shown(background="grey"),
        (0, 1, 0, 0, 0, 0, 0): shown(style="striped"),
        (0, 0, 0, 0, 1, 0, 0): shown(replace(red, speed="slow")),
        (0, 0, 0, 1, 1, 0, 0): shown(replace(red, action="moving left")),
        (0, 0, 1, 1, 1, 0, 0): shown(replace(red, shape="cross")),
        (0, 0, 0, 0, 0, 0, 1): shown(damage="flicker"),
    }
    for faults, clip in cases.items():
        assert clip.faults(RIGHT) == tuple(map(bool, faults)), faults
        assert clip.fulfils(RIGHT) == (not any(faults))
    any_speed = replace(RIGHT, acts=(replace(red, speed=None),))
    assert shown(replace(red, speed="slow")).faults(any_speed) == NOTHING_WRONG
    assert shown(replace(red, action="moving left")).faults(any_speed) == (
        False,
        False,
        False,
        True,
        False,
        False,
        False,
    )
    scene = shown().scene
    ghost = MotionScene(scene.actors, scene.style, scene.background, ghosts=scene.actors)
    assert ShownClip(ghost, None, render(ghost)[::2]).faults(RIGHT) == (*(False,) * 5, True, False)


def test_the_better_clip_has_a_part_of_the_others_faults():
    red = RIGHT.acts[0]
    right, grey, slow = shown(), shown(background="grey"), shown(replace(red, speed="slow"))
    assert (better((right, grey), RIGHT), better((grey, right), RIGHT)) == (0, 1)
    assert better((shown(replace(red, action="moving left")), slow), RIGHT) == 1
    assert better((grey, slow), RIGHT) is None  # each has a fault that the other has not
    assert better((grey, shown(background="grey")), RIGHT) is None


def test_the_lessons_have_the_words_of_judges_of_clips():
    sentence = Context(template="embedded-clips").resolved().wording.criteria["overall"]
    assert f"instruction: {sentence}" == INSTRUCTION


def test_answers_about_prompts_agree_with_the_oracle():
    """The oracle sees the five shown frames. Its fidelity is high for prompts with the answer yes."""
    rng, values, seen = np.random.default_rng(2), {"yes": [], "no": []}, Counter()
    for _ in range(100):
        lesson = prompts_lesson(rng)
        assert (len(lesson.images), lesson.prompt, lesson.request) == (1, None, f"{INSTRUCTION}\n{YES_OR_NO}")
        answers = dict(lesson.turns)
        smooth = answers.pop("question: are the frames of image 1 smooth?")
        for question, answer in answers.items():
            prompt, asked = question.removeprefix("prompt: ").split("\n")
            assert asked == "question: does image 1 match the prompt?"
            assert split_of(parse(prompt)) == "train"
            seen[answer] += 1
            if smooth == "yes":
                values[answer].append(fidelity(lesson.images[0], prompt, 4.0))
        assert smooth == "yes" or set(answers.values()) == {"no"}
        seen[smooth, "smooth"] += 1
    assert min(seen["yes"], seen["no"]) > 0.35 * (seen["yes"] + seen["no"])
    assert seen["no", "smooth"] > 4
    assert np.mean(values["yes"]) > 0.9
    assert np.mean(values["no"]) < 0.6
