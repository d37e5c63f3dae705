"""The moving world behind the task port: prompts apart from the benchmark, the oracle as gold, clips to train on."""

import numpy as np
import pytest
import torch

from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media
from rewarddance.core.streams import seed_of
from rewarddance.core.task import Drawn, Prompt
from rewarddance.evaluate.clips import verdicts
from rewarddance.jobs.load import load_task
from rewarddance.world.motion.benchmark import action_set
from rewarddance.world.motion.grammar import parse
from rewarddance.world.motion.oracle import judge
from rewarddance.world.motion.render import render
from rewarddance.world.motion.scene import FPS
from rewarddance.world.motion.splits import meaning, split_of
from rewarddance.world.task import EmbeddedTask

NAMES = ("embedded-video", "embedded-image-to-video")


def of(prompts):
    return {meaning(parse(p.text), speed=False) for p in prompts}


@pytest.mark.parametrize("name", NAMES)
def test_training_development_and_benchmark_have_no_meaning_in_common(name):
    task = load_task(name)
    training, probing = task.prompts(20, 6, seed=3)
    assert (len(training), len(probing)) == (20, 6)
    assert {split_of(parse(p.text)) for p in (*training, *probing)} == {"train"}
    benchmark, development = task.benchmark(), task.development()
    assert (len(benchmark), len(development)) == (48, 48)
    assert not of(benchmark) & of(development)
    assert not of((*training, *probing)) & (of(benchmark) | of(development))
    assert [p.text for p in task.prompts(20, 6, seed=3)[0]] == [p.text for p in training]


def test_image_to_video_prompts_begin_with_the_first_frame_of_a_right_clip():
    task = load_task("embedded-image-to-video")
    for prompt, entry in zip(task.benchmark()[:3], action_set("i2v"), strict=False):
        assert np.array_equal(prompt.condition.to_numpy(), entry.first_frame)
        clip = Media.from_numpy(render(entry.scene), fps=FPS)
        values = task.criteria([prompt], [clip])
        assert values["first_frame"] == [1.0]
        assert task.gold([prompt], [clip], [clip]) == values["overall"]
    prompts, pixels = task.supervised_batch(0, "sft-control", 2, 3)
    for prompt, clip in zip(prompts, pixels, strict=True):
        assert torch.equal(prompt.condition.frames[0], clip[0])


def test_gold_is_the_weighted_sum_of_the_motion_oracles_criteria():
    task = load_task("embedded-video")
    prompts, pixels = task.supervised_batch(1, "test", 0, 2)
    assert pixels.shape == (2, 9, 3, 48, 48)
    assert all(p.condition is None for p in prompts)
    media = [Media(x, FPS) for x in pixels]
    values = task.criteria(prompts, media)
    assert set(values) == {"fidelity", "motion", "consistency", "overall"}
    for i, (prompt, clip) in enumerate(zip(prompts, media, strict=True)):
        verdict = judge(clip.to_numpy(), prompt.text, FPS)
        expected = 0.5 * verdict.fidelity + 0.3 * verdict.motion + 0.2 * verdict.consistency
        assert values["overall"][i] == pytest.approx(expected)
        assert task.gold([prompt], [clip], [clip]) == [pytest.approx(expected)]
    frozen = [Media(x[:1].expand_as(x), FPS) for x in pixels]
    moving = [i for i, p in enumerate(prompts) if "still" not in p.text]
    assert all(task.gold(prompts, media, media)[i] > task.gold(prompts, frozen, frozen)[i] for i in moving)
    with pytest.raises(InputError, match="judges clips, and this is a picture"):
        task.gold(prompts[:1], [Media(pixels[0, :1])], media[:1])


def test_simulated_raters_score_from_0_to_2_and_prefer_right_clips():
    rate = load_task("embedded-video").rate
    right, wrong = (np.full((20, 2), value) for value in (1.0, 0.0))
    assert rate(right, 0).shape == (20, 2, 8)
    assert rate(right, 0).max() == 2
    assert rate(wrong, 0).min() == 0
    assert rate(right, 0).mean() > 1.7
    assert rate(wrong, 0).mean() < 0.3


def test_equal_clips_are_as_often_good_as_bad_whoever_the_sides_are():
    """Every side has noise of its own, and the raters are the same people: good minus bad is 0 within its error."""
    rate = load_task("embedded-video").rate
    values = np.random.default_rng(0).uniform(0.2, 0.8, (240, 2))
    sides = ("start", *(f"{arm}-{seed}" for arm in ("refl", "sft") for seed in range(3)))
    scores = {side: rate(values, seed_of(0, "raters", side)).mean(2) for side in sides}
    deviations = []
    for i, one in enumerate(sides):
        for other in sides[:i]:
            signs = verdicts(scores[one], scores[other], 0.0).ravel()
            assert (signs != 0).mean() > 0.5  # the noise of the two sides is not the same
            deviations.append(signs.mean() / (signs.std() / len(signs) ** 0.5))
    assert max(map(abs, deviations)) < 3
    assert np.mean(np.square(deviations)) == pytest.approx(1, abs=0.8)


def test_reference_clips_fulfil_their_prompts():
    task = load_task("embedded-video")
    texts = [p.text for p in task.benchmark()[:2]]
    clips = [Media(x, FPS) for x in task.reference_pictures(texts, 1, seed=0)]
    assert min(task.criteria(texts, clips)["fidelity"]) > 0.9


def test_reference_clips_of_image_to_video_begin_with_the_prompts_picture():
    task = load_task("embedded-image-to-video")
    prompts = (*task.benchmark()[:2], task.development()[0])
    pixels = task.reference_pictures(prompts, 2, seed=0)
    assert pixels.shape == (6, 9, 3, 48, 48)
    for i, prompt in enumerate(prompts):
        assert torch.equal(pixels[2 * i], pixels[2 * i + 1])
        assert task.criteria([prompt], [Media(pixels[2 * i], FPS)])["first_frame"] == [1.0]
        assert task.criteria([prompt], [Media(pixels[2 * i], FPS)])["fidelity"][0] > 0.9
    with pytest.raises(ConfigError, match="is not of an action set"):
        task.reference_pictures(task.prompts(1, 0, seed=0)[0], 1, 0)


def test_only_generators_of_its_own_clips_can_do_it():
    video, from_picture = map(load_task, NAMES)
    video.check(Drawn(48, 9, 8.0))
    from_picture.check(Drawn(48, 9, 8.0, from_picture=True))
    with pytest.raises(ConfigError, match="needs a generator of clips, and this one draws pictures"):
        video.check(Drawn(48))
    with pytest.raises(ConfigError, match="this generator is image-to-video; take --task embedded-image-to-video"):
        video.check(Drawn(48, 9, 8.0, from_picture=True))
    with pytest.raises(ConfigError, match="draws 81 frames of 480 pixels at 16 a second"):
        video.check(Drawn(480, 81, 16.0))
    with pytest.raises(ConfigError, match="the generator draws clips and the embedded task has pictures"):
        EmbeddedTask().check(Drawn(48, 9, 8.0))


def test_prompts_are_keys_whatever_their_fields():
    one, same = (Prompt("a", fields={"tag": [1]}) for _ in range(2))
    assert {one: 1}[same] == 1
