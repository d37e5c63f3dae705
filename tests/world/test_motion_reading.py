"""What a clip shows is read from its pixels, and a generator's clips of held-out content are left out of training."""

import numpy as np
import pytest

from rewarddance.core.streams import stream
from rewarddance.world.build.clip_preferences import ClipPreferencesConfig, clip_records
from rewarddance.world.motion.reading import read_content, shows_held_out
from rewarddance.world.motion.render import render
from rewarddance.world.motion.sampling import place, sample_spec
from rewarddance.world.motion.scene import FPS
from rewarddance.world.motion.splits import meaning, split_of


def scenes(split, num, seed):
    rng = stream(seed, "motion-reading", split)
    while num:
        try:
            scene = place(sample_spec(rng, split=split), rng)
        except RuntimeError:  # two objects that always collide
            continue
        if split_of(scene.listing) == split:  # open speeds may leave the split
            num -= 1
            yield scene


@pytest.mark.parametrize(("split", "held_out"), [("train", False), ("held_out", True), ("ood", True)])
def test_a_rendered_clip_is_read_as_its_scene(split, held_out):
    drawn = list(scenes(split, 25, 3))
    read = [read_content(render(s), FPS)[1] for s in drawn]
    right = [r is not None and meaning(r) == meaning(s.listing) for r, s in zip(read, drawn, strict=True)]
    assert np.mean(right) >= 0.9
    assert np.mean([shows_held_out(render(s), FPS) == held_out for s in drawn]) >= 0.96


def test_a_clip_that_shows_nothing_certain_is_not_read():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (9, 48, 48, 3), dtype=np.uint8)
    assert read_content(noise, FPS)[1] is None
    assert read_content(np.full((9, 48, 48, 3), 255, np.uint8), FPS)[1] is None
    assert not shows_held_out(np.full((9, 48, 48, 3), 255, np.uint8), FPS)


def careless(asked, num, seed, previews):
    """A generator that pays no attention to the prompts: two clips of three show held-out content."""
    sources = [scenes(s, len(asked) * num, seed) for s in ("train", "held_out", "ood")]
    return [[render(next(sources[k % 3])) for k in range(num)] for _ in asked]


def test_what_a_generator_draws_by_mistake_is_held_out_too():
    config = ClipPreferencesConfig(num_prompts=8, clips=4, generator_share=1.0)
    records = list(clip_records(config, draw_clips=careless))
    assert {r.source for r in records} == {"generator"}
    shown = [read_content(m.to_numpy(), m.fps)[1] for r in records for m in r.media]
    assert len(shown) == 16  # two of the five clips of every prompt
    assert {split_of(s) for s in shown if s is not None} == {"train"}
    held_out = list(clip_records(config.model_copy(update={"split": "held_out"}), draw_clips=careless))
    assert {len(r.media) for r in held_out} == {4}


def test_too_few_clips_of_training_content_give_a_rendered_record():
    def only_held_out(asked, num, seed, previews):
        source = scenes("ood", len(asked) * num, seed)
        return [[render(next(source)) for _ in range(num)] for _ in asked]

    config = ClipPreferencesConfig(num_prompts=2, clips=2, generator_share=1.0)
    drawn, alone = list(clip_records(config, draw_clips=only_held_out)), list(clip_records(config))
    assert [r.source for r in drawn] == ["rendered"] * 2
    assert [m.key for r in drawn for m in r.media] == [m.key for r in alone for m in r.media]
