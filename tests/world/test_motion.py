"""Scenes, prompts, splits, corruptions, action sets, preferences and lessons of the moving world."""

import hashlib
import math

import numpy as np
import pytest

from rewarddance.core.streams import stream
from rewarddance.world.benchmark import benchmark_prompts
from rewarddance.world.build.clip_preferences import ClipPreferencesConfig, clip_records
from rewarddance.world.grammar import PromptError
from rewarddance.world.motion import batches, lessons
from rewarddance.world.motion.benchmark import PER_SET, SET_NAMES, action_set
from rewarddance.world.motion.corrupt import DAMAGES, EDITS, FIRST_FRAME_EDITS, damage, edit_scene
from rewarddance.world.motion.grammar import HELD_OUT_WORDINGS, WORDINGS, parse, phrase
from rewarddance.world.motion.raters import alignment
from rewarddance.world.motion.reading import shows_held_out
from rewarddance.world.motion.render import render
from rewarddance.world.motion.sampling import TRAIN_ACTIONS, place, sample_pair, sample_spec
from rewarddance.world.motion.scene import (
    ACTIONS,
    FAMILY,
    FPS,
    HEADING,
    NUM_FRAMES,
    RATE_LINE,
    RATES,
    SECONDS,
    Act,
    MotionSpec,
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


@pytest.mark.parametrize("single_share", [0.0, 1.0])
@pytest.mark.parametrize("task", ["t2v", "i2v"])
def test_no_preference_record_asks_or_draws_what_is_held_out(task, single_share, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "rewarddance.world.build.clip_preferences.render", lambda scene: drawn.append(scene) or render(scene)
    )
    refused = []
    module = "rewarddance.world.build.clip_preferences.shows_held_out"
    monkeypatch.setattr(module, lambda *clip: refused.append(shows_held_out(*clip)) or refused[-1])
    config = ClipPreferencesConfig(task=task, num_prompts=40, clips=3, single_share=single_share)
    records = list(clip_records(config))
    assert {r.source for r in records} == {"single" if single_share else "rendered"}
    assert any(refused)  # some damage is drawn again
    assert all(split_of(parse(r.prompt)) == "train" for r in records)
    assert len(drawn) >= 120
    assert all(map(scene_is_trainable, drawn))
    renders = {render(scene).tobytes() for scene in drawn}
    for media in (m for r in records for m in r.media):  # a clip that runs backward or faster may show another act
        clip = media.to_bytes().permute(0, 2, 3, 1).numpy()
        assert not shows_held_out(clip, media.fps) or (media.fps == FPS and clip.tobytes() in renders)


def test_records_of_single_changes_have_one_right_clip():
    """The right clip has the best value, and the first frame of image-to-video stays the same in all clips."""
    config = ClipPreferencesConfig(task="i2v", num_prompts=12, single_share=1.0)
    for record in clip_records(config):
        assert max(record.truth) > 0.9
        assert min(record.truth) < max(record.truth)
        first = {m.to_numpy()[0].tobytes() for m in record.media}
        assert first == {record.condition.to_numpy().tobytes()}
    held_out = config.model_copy(update={"split": "held_out", "num_prompts": 4})
    assert {r.source for r in clip_records(held_out)} == {"rendered"}  # figures stay comparable


@pytest.mark.parametrize("kind", ["clip_lesson", "action_lesson", "prompts_lesson", "clip_batch"])
def test_no_lesson_or_batch_draws_what_is_held_out(kind, monkeypatch):
    drawn = []
    module = batches if kind == "clip_batch" else lessons
    monkeypatch.setattr(module, "render", lambda scene: drawn.append(scene) or render(scene))
    if kind == "clip_batch":
        batches.clip_batch(0, "held-out", 0, 60)
    else:
        rng = stream(4, "held-out-lessons")
        for _ in range(40):
            getattr(lessons, kind)(rng)
    assert len(drawn) >= 40
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


def test_a_held_out_action_with_missing_frames_is_still_seen():
    clip = render(place(MotionSpec((Act("red", "square", OOD_ACTION),)), stream(0, "late"))).copy()
    clip[:3] = clip[0, 0, 0]
    assert shows_held_out(clip, FPS)
