"""Scenes, prompts, splits, corruptions, action sets, preferences and lessons of the moving world."""

import hashlib
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rewarddance.core.streams import stream
from rewarddance.world.benchmark import benchmark_prompts
from rewarddance.world.build.clip_preferences import ClipPreferencesConfig, clip_records
from rewarddance.world.grammar import PromptError
from rewarddance.world.motion.benchmark import PER_SET, SET_NAMES, action_set
from rewarddance.world.motion.corrupt import DAMAGES, EDITS, FIRST_FRAME_EDITS, damage, edit_scene
from rewarddance.world.motion.grammar import HELD_OUT_WORDINGS, WORDINGS, parse, parse_act, phrase
from rewarddance.world.motion.lessons import _shown, action_lesson, between_frames, clip_lesson
from rewarddance.world.motion.oracle import fidelity, judge
from rewarddance.world.motion.raters import alignment
from rewarddance.world.motion.render import render
from rewarddance.world.motion.sampling import TRAIN_ACTIONS, place, sample_pair, sample_spec
from rewarddance.world.motion.scene import (
    ACTIONS,
    FAMILY,
    HEADING,
    NUM_FRAMES,
    RATE_LINE,
    RATES,
    SECONDS,
    Act,
    Actor,
    MotionSpec,
    Pose,
)
from rewarddance.world.motion.splits import (
    OOD_ACTION,
    OOD_SHAPES,
    OOD_SPEEDS,
    OOD_TOGETHER,
    meaning,
    scene_is_trainable,
    split_of,
)
from rewarddance.world.raters import Rater, crowd
from rewarddance.world.scene import CANVAS, RGB
from rewarddance.world.splits import OOD_KINDS, OOD_STYLE


@pytest.fixture(scope="module")
def pairs():
    rng = stream(0, "test-motion")
    return [sample_pair(rng) for _ in range(300)]


def test_grammar_round_trip():
    rng = stream(0, "motion-grammar")
    for split in ("train", "held_out", "ood"):
        for _ in range(150):
            spec = sample_spec(rng, split=split)
            for wording in (*WORDINGS, *HELD_OUT_WORDINGS):
                assert parse(phrase(spec, wording)) == spec


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red circle moving left",
        "flat clip of a red circle quickly staying still on white",
        "flat clip of a red circle turning red on white",
        "flat clip of a red circle moving left and a red circle moving right on white",
        "flat clip of a red circle circling on white",
        "flat drawing of a red circle on white",
        "flat clip of a red circle growing and a blue cross growing and a cyan cross growing on white",
    ],
)
def test_what_is_not_a_prompt_is_refused(prompt):
    with pytest.raises(PromptError):
        parse(prompt)


def test_objects_move_as_their_acts_say_and_as_fast(pairs):
    """By the poses alone: direction, rate, and nothing else changes."""
    for _, scene in pairs:
        for actor in scene.actors:
            x, y, size = np.array([(p.x, p.y, p.size) for p in actor.poses]).T
            act, family = actor.act, FAMILY[actor.act.action]
            if family == "translation":
                dx, dy = HEADING[act.action]
                way = dx * (x[-1] - x[0]) + dy * (y[-1] - y[0])
                rate = way / SECONDS
                assert np.hypot(np.diff(x), np.diff(y)) == pytest.approx(way / (NUM_FRAMES - 1))
            elif family == "growth":
                rate = abs(size[-1] - size[0]) / SECONDS
                assert (size[-1] > size[0]) == (act.action == "growing")
            elif family == "orbit":
                middle = scene.actors[1].poses[0]
                angle = np.unwrap(np.arctan2(y - middle.y, x - middle.x))
                rate = abs(angle[-1] - angle[0]) / (2 * math.pi * SECONDS)
                assert np.hypot(x - middle.x, y - middle.y) == pytest.approx(16.5)
            else:
                continue
            assert RATES[family][act.speed][0] - 1e-6 <= rate <= RATES[family][act.speed][1] + 1e-6
            assert (rate > RATE_LINE[family]) == (act.speed == "fast")


def test_objects_stay_inside_and_apart(pairs):
    for _, scene in pairs:
        boxes = [np.array([(p.x, p.y, p.size) for p in a.poses]) for a in scene.actors]
        for b in boxes:
            assert (b[:, :2] - b[:, 2:] / 2).min() >= 1 - 1e-6
            assert (b[:, :2] + b[:, 2:] / 2).max() <= CANVAS - 1 + 1e-6
        if len(boxes) == 2:
            gap = abs(boxes[0][:, :2] - boxes[1][:, :2]).max(1) - (boxes[0][:, 2] + boxes[1][:, 2]) / 2
            assert gap.min() >= 1.5 - 1e-6


def test_rendering_is_pinned(pairs):
    """Same seed, same bytes. A change of a single pixel would change what shipped weights were trained on."""
    clips = [render(scene) for _, scene in pairs[:40]]
    digest = hashlib.sha256(b"".join(c.tobytes() for c in clips)).hexdigest()
    assert digest == "64c866d9196bca535f35a8a6755084c49eed7015287014137296ffd81320dfaf"
    assert clips[0].shape == (NUM_FRAMES, CANVAS, CANVAS, 3)


def test_paint_follows_the_object_to_a_quarter_pixel():
    """The centre of coverage of a flat square, by hand."""
    spec = MotionSpec((Act("blue", "square", "moving right", "slow"),), "flat", "white")
    scene = place(spec, stream(0, "quarter"))
    cover = (render(scene).astype(float) - RGB["white"]) @ (np.array(RGB["blue"]) - RGB["white"])
    xs = (cover.sum(1) @ (np.arange(CANVAS) + 0.5)) / cover.sum((1, 2))
    assert xs == pytest.approx([p.x for p in scene.actors[0].poses], abs=0.14)


def _streams():
    """Everything that a training stream shows: sampled pairs, their edits, preference records."""
    rng = stream(1, "motion-streams")
    for _ in range(250):
        spec, scene = sample_pair(rng)
        yield spec, scene
        yield spec, edit_scene(scene, rng)


def test_no_training_stream_shows_what_is_held_out():
    held = {meaning(p.spec) for split in ("held_out", "ood") for name in SET_NAMES for p in action_set(name, split)}
    for spec, scene in _streams():
        assert split_of(spec) == "train"
        assert meaning(spec) not in held
        assert meaning(scene.listing, speed=False) not in {meaning(p.spec, speed=False) for p in action_set("t2v")}
        assert scene_is_trainable(scene)
        assert scene.style != OOD_STYLE
        acts = [a.act for a in (*scene.actors, *scene.ghosts)]
        for act in acts:
            assert act.action != OOD_ACTION
            assert (act.action, act.speed) not in OOD_SPEEDS
            assert (act.shape, act.action) not in OOD_SHAPES
            assert not OOD_KINDS.intersection(act.kinds)
        assert len(scene.actors) == 1 or frozenset(a.act.action for a in scene.actors) not in OOD_TOGETHER


@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_no_preference_record_asks_or_draws_what_is_held_out(task, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "rewarddance.world.build.clip_preferences.render", lambda scene: drawn.append(scene) or render(scene)
    )
    records = list(clip_records(ClipPreferencesConfig(task=task, num_prompts=25, clips=3)))
    assert all(split_of(parse(r.prompt)) == "train" for r in records)
    assert len(drawn) >= 75
    assert all(map(scene_is_trainable, drawn))


def test_ood_holds_every_kind_of_novelty():
    rng = stream(3, "motion-ood")
    specs = [sample_spec(rng, split="ood") for _ in range(400)]
    acts = [a for s in specs for a in s.acts]
    assert any(a.action == OOD_ACTION for a in acts)
    assert {(a.action, a.speed) for a in acts} >= OOD_SPEEDS
    assert {(a.shape, a.action) for a in acts} >= OOD_SHAPES
    assert any(len(s.acts) == 2 and frozenset(a.action for a in s.acts) in OOD_TOGETHER for s in specs)


def test_action_sets_are_disjoint_held_out_and_balanced():
    prompts = [p for name in SET_NAMES for p in action_set(name)]
    assert len(prompts) == len({meaning(p.spec, speed=False) for p in prompts}) == 4 * PER_SET == 192
    assert all(split_of(p.spec) == "held_out" and parse(p.text) == p.spec for p in prompts)
    assert not {p.text for p in prompts} & {text for _, text in benchmark_prompts()}
    for name in SET_NAMES:
        counts = {a: sum(p.category == a for p in action_set(name)) for a in TRAIN_ACTIONS}
        assert set(counts.values()) == {4}
    ood = [p for name in SET_NAMES for p in action_set(name, "ood")]
    assert {p.category for p in ood} == set(ACTIONS)
    assert all(split_of(p.spec) == "ood" for p in ood)


def test_first_frames_begin_their_scenes():
    for p in action_set("i2v")[:12]:
        assert np.array_equal(p.first_frame, render(p.scene)[0])
        assert meaning(p.scene.listing, speed=False) == meaning(p.spec, speed=False)


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_changes_the_clip_and_may_keep_the_first_frame(edit):
    rng, changed = stream(4, "motion-edit", edit), 0
    for _ in range(30):
        _, scene = sample_pair(rng)
        try:
            edited = edit_scene(scene, rng, edit, keep_first=edit in FIRST_FRAME_EDITS)
        except RuntimeError:
            continue
        before, after = render(scene), render(edited)
        changed += not np.array_equal(before, after)
        if edit in FIRST_FRAME_EDITS:
            assert np.array_equal(before[0], after[0])
    assert changed >= 4


def test_damage_does_what_it_says(pairs):
    clip, rng = render(pairs[0][1]), stream(5, "motion-damage")
    for kind in DAMAGES:
        assert np.array_equal(damage(clip, kind, 0.0, rng), clip)
        spoilt = damage(clip, kind, 1.0, rng)
        assert (spoilt.shape, spoilt.dtype) == (clip.shape, np.uint8)
    assert np.array_equal(damage(clip, "reverse", 1.0, rng), clip[::-1])
    assert np.array_equal(damage(clip, "freeze", 1.0, rng), np.repeat(clip[:1], NUM_FRAMES, 0))
    marked = np.arange(NUM_FRAMES, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    assert sorted(damage(marked, "shuffle", 1.0, rng)[:, 0, 0, 0]) == list(range(NUM_FRAMES))


def test_records_are_functions_of_their_index_and_raters_follow_the_truth():
    config = ClipPreferencesConfig(num_prompts=40, clips=3)
    records = list(clip_records(config))
    again = list(clip_records(config, 7, 9))
    assert [m.key for m in again[0].media] == [m.key for m in records[7].media]
    assert again[1].choices == records[8].choices
    assert all(m.fps == 8 and m.num_frames == NUM_FRAMES for m in records[0].media)
    clear = [
        (c.label > 0.5) == (r.truth[c.first] > r.truth[c.second])
        for r in records
        for c in r.choices
        if abs(r.truth[c.first] - r.truth[c.second]) > 0.3
    ]
    assert len(clear) > 20
    assert np.mean(clear) > 0.95


def test_image_to_video_records_hold_the_first_frame():
    records = list(clip_records(ClipPreferencesConfig(num_prompts=20, clips=3, task="i2v")))
    same = [bool((m.frames[0] == r.condition.frames[0]).all()) for r in records for m in r.media]
    assert 0.7 < np.mean(same) < 1
    assert records[0].comparisons()[0].condition is records[0].condition
    with pytest.raises(ValueError, match="i2v"):
        next(clip_records(ClipPreferencesConfig(criterion="first_frame")))


def test_alignment_runs_from_0_to_2():
    raters = crowd(8)
    right, scores = alignment(np.ones(48), raters)
    wrong, _ = alignment(np.zeros(48), raters)
    half, _ = alignment(np.full((48, 2), 0.5), [Rater("r")])
    assert set(scores.ravel().tolist()) <= {0, 1, 2}
    assert right.mean > 1.9
    assert wrong.mean < 0.1
    assert half.mean == pytest.approx(1.0, abs=0.05)
    assert right.ci_low <= right.mean <= right.ci_high
    mixed, _ = alignment([0.0] * 24 + [1.0] * 24, raters)
    assert mixed.ci_high - mixed.ci_low == pytest.approx(2 * 1.96 / math.sqrt(48), rel=0.25)  # two values, 0 and 2


def test_lessons_about_clips_are_true():
    """Answers agree with the scene: actions and speeds of its acts, matches with the prompt's specification."""
    rng = np.random.default_rng(0)
    seen, values = Counter(), []
    for _ in range(300):
        lesson = clip_lesson(rng)
        assert all(clip.shape == (5, 48, 48, 3) for clip in lesson.images)
        answers = dict(lesson.turns)
        for i in range(1, len(lesson.images) + 1):
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
