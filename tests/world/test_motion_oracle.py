"""The oracle of clips against renders whose truth is known, and against every damage."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rewarddance.core.streams import stream
from rewarddance.world.grammar import PromptError
from rewarddance.world.motion.corrupt import damage, edit_scene
from rewarddance.world.motion.oracle import CRITERIA, judge
from rewarddance.world.motion.render import render
from rewarddance.world.motion.sampling import place, sample_pair, sample_spec
from rewarddance.world.motion.scene import FAMILY, FPS, RATES, Act, MotionSpec
from rewarddance.world.motion.tracks import watch

SYMMETRIC = ("bouncing", "circling", "staying still")
"""Actions that look the same backward."""


@pytest.fixture(scope="module")
def clean():
    rng = stream(0, "test-motion-oracle")
    pairs = [sample_pair(rng) for _ in range(120)]
    return [(spec, scene, render(scene)) for spec, scene in pairs]


def means(judgements):
    return {c: float(np.mean([j[c] for j in judgements])) for c in CRITERIA if judgements[0].first_frame is not None}


def test_clean_clips_score_high_and_mismatched_prompts_low(clean):
    right = [judge(clip, spec, FPS, clip[0]) for spec, _, clip in clean]
    assert min(means(right).values()) >= 0.97, means(right)
    assert np.percentile([j.fidelity for j in right], 2) >= 0.8
    wrong = [judge(clip, clean[(i + 7) % len(clean)][0], FPS).fidelity for i, (_, _, clip) in enumerate(clean)]
    assert np.mean(wrong) <= 0.15


@pytest.mark.parametrize("action", ["growing", "moving right", "circling", "bouncing", "turning"])
def test_an_object_that_comes_late_only_appears(action):
    others = (Act("blue", "circle", "staying still"),) if action == "circling" else ()
    acts = (Act("red", "square", action, None, "green" if action == "turning" else None), *others)
    clip = render(place(MotionSpec(acts), stream(2, "late"))).copy()
    assert judge(clip, MotionSpec(acts), FPS).fidelity > 0.95
    clip[: 4 if action == "turning" else 5] = clip[0, 0, 0]  # background; the colour turns later
    late = judge(clip, MotionSpec(acts), FPS)
    assert late.fidelity < 0.5
    assert any("no (" in reason for reason in late.reasons)


@pytest.mark.parametrize("split", ["held_out", "ood"])
def test_held_out_and_ood_clips_score_high(split):
    rng, scores = stream(1, "test-motion-oracle"), []
    while len(scores) < 50:
        spec = sample_spec(rng, split=split)
        try:
            scores.append(judge(render(place(spec, rng)), spec, FPS).fidelity)
        except RuntimeError:
            continue
    assert np.mean(scores) >= 0.95


@pytest.mark.parametrize(
    ("kind", "strengths", "criterion"),
    [
        ("flicker", (0, 0.12, 0.3, 0.6, 1), "consistency"),
        ("freeze", (0, 0.25, 0.5, 0.75, 1), "motion"),
        ("freeze", (0, 0.25, 0.5, 0.75, 1), "fidelity"),
        ("reverse", (0, 0.25, 0.5, 0.75, 1), "fidelity"),
        ("shuffle", (0, 0.25, 0.5, 1), "motion"),
        ("noise", (0, 0.1, 0.2, 0.4, 0.8), "fidelity"),
        ("noise", (0, 0.1, 0.2, 0.4, 0.8), "consistency"),
    ],
)
def test_monotone_under_growing_damage(clean, kind, strengths, criterion):
    rng = stream(2, "test-motion-oracle", kind)
    moving = [(s, c) for s, _, c in clean if not any(a.action in SYMMETRIC for a in s.acts)][:30]
    values = [np.mean([judge(damage(c, kind, s, rng), spec, FPS)[criterion] for spec, c in moving]) for s in strengths]
    assert all(a >= b - 0.03 for a, b in itertools.pairwise(values)), values
    assert values[0] - values[-1] > 0.5


def test_still_and_reversed_clips_of_moving_prompts_score_low(clean):
    moving = [(s, c) for s, _, c in clean if s.acts[0].action != "staying still"]
    still = [judge(np.repeat(c[:1], len(c), 0), s, FPS) for s, c in moving]
    assert np.mean([j.fidelity for j in still]) < 0.3
    assert np.mean([j.motion for j in still]) < 0.15
    one_way = [(s, c) for s, _, c in clean if len(s.acts) == 1 and s.acts[0].action not in SYMMETRIC]
    backward = [judge(c[::-1], s, FPS).fidelity for s, c in one_way]
    assert np.mean(backward) < 0.2


@pytest.mark.parametrize("action", ["moving left", "bouncing", "growing", "circling"])
def test_slow_and_fast_are_told_apart_by_seconds(action):
    """The same frames, shown twice as fast or half as fast, change sides."""
    shape = {"bouncing": "square", "circling": "circle"}.get(action, "diamond")
    still = (Act("blue", "square", "staying still"),) if action == "circling" else ()
    assert FAMILY[action] in RATES
    for speed, wrong, other_fps in (("slow", "fast", 16.0), ("fast", "slow", 4.0)):
        spec = MotionSpec((Act("purple", shape, action, speed), *still))
        asked = replace(spec, acts=(replace(spec.acts[0], speed=wrong), *still))
        clip = render(place(spec, stream(3, action, speed)))
        assert judge(clip, spec, FPS).fidelity > 0.9
        assert judge(clip, asked, FPS).fidelity < 0.4
        assert judge(clip, asked, other_fps).fidelity > 0.9
        assert judge(clip, spec, other_fps).motion < 0.3


@pytest.mark.parametrize(("edit", "most"), [
    ("direction", 0.5), ("action", 0.5), ("speed", 0.5), ("freeze", 0.5), ("object", 0.5), ("colour", 0.5),
    ("background", 0.5), ("ghost", 0.85),
])  # fmt: skip
def test_every_edit_that_matters_costs(clean, edit, most):
    rng, scores = stream(4, "test-motion-oracle", edit), []
    for spec, scene, _ in clean:
        if len(spec.acts) > 1 or len(scores) == 20 or (edit == "speed" and spec.acts[0].speed is None):
            continue
        try:
            scores.append(judge(render(edit_scene(scene, rng, edit)), spec, FPS))
        except RuntimeError:
            continue
    assert np.mean([j.fidelity for j in scores]) < most
    if edit == "ghost":
        assert np.mean([j.consistency for j in scores]) < 0.75


def test_two_objects_of_one_colour_are_told_apart():
    """They pass each other; each keeps its own track."""
    spec = MotionSpec((Act("red", "circle", "moving right", "fast"), Act("red", "square", "moving left", "fast")))
    scene = place(spec, stream(5, "pass"))
    watched = watch(render(scene), FPS)
    assert sorted(t.name for t in watched.tracks) == ["red circle", "red square"]
    for track in watched.tracks:
        actor = next(a for a in scene.actors if a.shape in track.name)
        gap = track.centres[:, 0] - [p.x for p in actor.poses]
        assert abs(gap).max() < 0.3
    assert judge(render(scene), spec, FPS).fidelity > 0.95


def test_the_first_frame_is_compared_by_pixels_and_objects(clean):
    same = [judge(c, s, FPS, c[0]).first_frame for s, _, c in clean[:30]]
    other = [judge(c, s, FPS, clean[i + 31][2][0]).first_frame for i, (s, _, c) in enumerate(clean[:30])]
    soft = [judge(c, s, FPS, damage(c, "blur", 0.1, stream(6))[0]).first_frame for s, _, c in clean[:30]]
    assert min(same) == 1.0
    assert np.mean(other) < 0.3
    assert np.mean(soft) > 0.8
    assert judge(clean[0][2], clean[0][0], FPS).first_frame is None


def test_reasons_name_what_is_wrong():
    spec = MotionSpec((Act("red", "square", "moving left", "slow"),))
    right = place(spec, stream(7, "reasons"))
    backward = judge(render(right)[::-1], spec, FPS).reasons
    assert "red square: found" in backward
    assert any(r.startswith("red square slowly moving left: no") for r in backward)
    fast = judge(render(place(replace(spec, acts=(replace(spec.acts[0], speed="fast"),)), stream(8))), spec, FPS)
    assert "red square: too fast" in fast.reasons
    assert "blue square: missing" in judge(render(right), MotionSpec((Act("blue", "square", "growing"),)), FPS).reasons


@settings(max_examples=15, deadline=None)
@given(arrays(np.uint8, (3, 48, 48, 3), elements=st.integers(0, 255)), st.integers(2, 12))
def test_any_clip_is_judged(frames, num):
    clip = np.resize(frames, (num, 48, 48, 3))
    verdict = judge(clip, "flat clip of a red circle quickly circling a blue square on white", 8.0, clip[0])
    assert all(0 <= verdict[c] <= 1 for c in CRITERIA)


def test_wrong_arrays_rates_and_prompts_are_refused():
    clip = np.zeros((9, 48, 48, 3), np.uint8)
    prompt = "flat clip of a red circle growing on white"
    for bad, fps, match in (
        (clip[0], 8, "clip"),
        (clip[:1], 8, "2 to"),
        (clip[:, :32], 8, "uint8"),
        (clip, 0, "fps|per"),
    ):
        with pytest.raises(ValueError, match=match):
            judge(bad, prompt, fps)
    with pytest.raises(PromptError):
        judge(clip, "a cat walking", 8)
    with pytest.raises(KeyError):
        judge(clip, prompt, 8)["style"]
    with pytest.raises(ValueError, match="first_frame needs"):
        judge(clip, prompt, 8)["first_frame"]
