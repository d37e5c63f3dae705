"""What is held out of training is held out of every stream that the jobs train on, wordings too."""

import re

import numpy as np
import pytest

from rewarddance.core.streams import stream
from rewarddance.jobs.load import load_generator
from rewarddance.world import batches
from rewarddance.world import lessons as world_lessons
from rewarddance.world.batches import captioned_batch, scene_batch
from rewarddance.world.benchmark import benchmark_prompts, benchmark_specs
from rewarddance.world.build import preferences, vision
from rewarddance.world.build.preferences import PreferencesConfig, draw_images, embedded_records
from rewarddance.world.build.vision import VisionConfig
from rewarddance.world.detect import detect
from rewarddance.world.grammar import HELD_OUT_WORDINGS, parse, phrase
from rewarddance.world.lessons import lesson, matching_lesson, relation_lesson
from rewarddance.world.reading import read_scene, shows_held_out
from rewarddance.world.render import render
from rewarddance.world.sampling import place, sample_spec
from rewarddance.world.splits import OOD_KINDS, meaning, scene_is_trainable, split_of
from rewarddance.world.task import EmbeddedTask


def _pattern(wording):
    return re.compile(re.sub(r"\\{\w+\\}", r".+", re.escape(wording)))


HELD_OUT_FRAMES = [_pattern(w) for w in HELD_OUT_WORDINGS]


def prompts_of_generator_pretraining():
    return [p for step in range(40) for p in captioned_batch(0, "generator", step, 32)[0]]


def prompts_of_alignment():
    return [p.text for part in EmbeddedTask().prompts(512, 128, 0) for p in part]


def prompts_of_preferences():
    return [r.prompt for r in embedded_records(PreferencesConfig(num_prompts=400, pictures=2))]


@pytest.mark.parametrize(
    "stream", [prompts_of_generator_pretraining, prompts_of_alignment, prompts_of_preferences], ids=lambda f: f.__name__
)
def test_no_stream_of_prompts_holds_anything_held_out(stream):
    prompts = stream()
    assert len(prompts) >= 400
    benchmark = {meaning(s) for split in ("held_out", "ood") for s in benchmark_specs(split)}
    for prompt in prompts:
        assert split_of(parse(prompt)) == "train", prompt
        assert meaning(parse(prompt)) not in benchmark
        assert not any(frame.fullmatch(prompt) for frame in HELD_OUT_FRAMES), prompt


def test_the_held_out_wording_is_known_when_it_is_seen():
    """The test above would pass if the pattern matched nothing."""
    prompts = [p for _, p in benchmark_prompts("ood")]
    seen = sum(any(frame.fullmatch(p) for frame in HELD_OUT_FRAMES) for p in prompts)
    assert 0.2 * len(prompts) < seen < 0.5 * len(prompts)
    assert HELD_OUT_FRAMES[0].fullmatch(phrase(parse(prompts[0]), HELD_OUT_WORDINGS[0]))


def _kinds_held_out(pictures):
    """Share of pictures in which the oracle's eye finds a kind that is held out."""
    seen = [{(o.colour, o.shape) for o in detect(x).objects} for x in pictures]
    return np.mean([bool(found & OOD_KINDS) for found in seen])


def test_no_picture_of_a_preference_record_shows_a_kind_that_is_held_out():
    """But for what the eye misreads in damaged pictures; of the benchmark's own pictures it finds every second one."""
    rng = stream(0, "test-held-out")
    records = embedded_records(PreferencesConfig(num_prompts=150, pictures=2, mixed_share=0.0))
    assert _kinds_held_out([m.to_numpy() for r in records for m in r.media]) < 0.05
    assert _kinds_held_out([render(place(s, rng)) for s in benchmark_specs("ood")]) > 0.3


def _careless_draw(prompts, num, seed, previews):
    """A generator that draws anything, half of it of the split that is held out by rule."""
    rng = np.random.default_rng(seed)
    splits = ("train", "held_out", "ood", "ood")
    return [[render(place(sample_spec(rng, split=splits[k % 4]), rng)) for k in range(num)] for _ in prompts]


def test_what_a_generator_draws_by_mistake_is_held_out_too():
    config = PreferencesConfig(num_prompts=200, pictures=4, generator_share=1.0)
    records = list(embedded_records(config, _careless_draw))
    pictures = [m.to_numpy() for r in records if r.source == "generator" for m in r.media]
    scenes = [s for s in map(read_scene, pictures) if s is not None]
    assert len(scenes) > 50
    assert all(map(scene_is_trainable, scenes))
    assert {r.source for r in records} == {"generator", "rendered"}
    assert min(len(r.media) for r in records) >= 2
    drawn = [x for row in _careless_draw(["x"] * 50, 4, 0, False) for x in row]
    assert sum(map(shows_held_out, drawn)) > 0.4 * len(drawn)


@pytest.mark.slow
def test_the_shipped_generators_mistakes_are_held_out_too():
    draw = draw_images(load_generator("tiny"), 8)
    records = list(embedded_records(PreferencesConfig(num_prompts=64, generator_share=1.0), draw))
    assert not any(shows_held_out(m.to_numpy()) for r in records if r.source == "generator" for m in r.media)
    assert sum(r.source == "generator" for r in records) > 50


def lessons():
    for i in range(150):
        for make in (lesson, matching_lesson, relation_lesson):
            make(stream(0, "held-out-lessons", i))


def rendered_preferences():
    assert len(list(embedded_records(PreferencesConfig(num_prompts=150)))) == 150


def vision_pretraining():
    config = VisionConfig()
    make = vision.VisionBatches(0, "vision", config.batch_size, 4, 0.5)
    for step in range(8):
        make(step)


def generator_and_autoencoder_pretraining():
    for step in range(20):
        captioned_batch(0, "generator", step, 32)
        scene_batch(0, "autoencoder", step, 32)


@pytest.mark.parametrize(
    "run",
    [lessons, rendered_preferences, vision_pretraining, generator_and_autoencoder_pretraining],
    ids=lambda f: f.__name__,
)
def test_no_stream_renders_a_scene_that_is_held_out(run, monkeypatch):
    """Counts, styles and plain listings too, of every scene that a training stream draws, edited ones as well."""
    drawn = []
    for module in (world_lessons, preferences, vision, batches):
        monkeypatch.setattr(module, "render", lambda scene: drawn.append(scene) or render(scene))
    run()
    assert len(drawn) > 300
    assert all(map(scene_is_trainable, drawn))
