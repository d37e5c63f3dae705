"""Pretraining of the embedded models in a few steps: losses fall, stops resume, folders load."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from rewarddance.core.errors import RunError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import stream
from rewarddance.core.types import Comparison
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.data.build import build_data
from rewarddance.lab.assets import ship
from rewarddance.reward.context import Context
from rewarddance.vlm.encoding import ChatEncoder
from rewarddance.vlm.internvl import InternVLBackbone
from rewarddance.vlm.preprocess import Preprocessor
from rewarddance.world.build import preferences
from rewarddance.world.build.autoencoder import AutoencoderConfig, train_autoencoder
from rewarddance.world.build.generator import GeneratorConfig, train_generator
from rewarddance.world.build.lesson_batches import LessonSource
from rewarddance.world.build.packing import LessonPacker, collate
from rewarddance.world.build.preferences import PreferencesConfig, draw_images, embedded_records
from rewarddance.world.build.tiny_vlm import SIZES, Size, new_tokenizer, new_vlm
from rewarddance.world.build.vision import NOTHING, VisionConfig, patch_targets, pretrain_vision
from rewarddance.world.build.vlm import train_vlm
from rewarddance.world.build.vlm_config import VlmConfig
from rewarddance.world.detect import detect
from rewarddance.world.grammar import parse
from rewarddance.world.lessons import YES_OR_NO, Lesson, lesson, yes_or_no
from rewarddance.world.oracle import judge
from rewarddance.world.raters import utility
from rewarddance.world.scene import Placed, Scene


def quick(num_steps, **optim):
    loop = LoopConfig(num_steps=num_steps, validate_every=num_steps, save_every=1)
    return {"loop": loop, "optim": OptimConfig(lr=2e-3, **optim)}


def test_autoencoder_then_generator_then_package(tmp_path):
    vae = train_autoencoder(AutoencoderConfig(batch_size=4, **quick(8)), tmp_path / "ae")
    losses = [m["mse"] for m in RunFolder(tmp_path / "ae").metrics()]
    assert losses[-1] < losses[0]
    config = GeneratorConfig(batch_size=4, **quick(2, name="muon", ema_decay=0.9))
    train_generator(config, vae, tmp_path / "gen")
    ship(tmp_path / "gen", tmp_path / "package")
    weights = load_file(tmp_path / "package" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(w.dtype == torch.bfloat16 for w in weights.values())
    facts = json.loads((tmp_path / "package" / "training.json").read_text())
    assert facts["trained"]["steps"] == 2
    generator = Sd3Generator.load(tmp_path / "package")
    z = generator.noise(1, torch.Generator().manual_seed(0))
    assert generator.velocity(z, 0.5, generator.condition(["hello"])).shape == (1, 8, 12, 12)


def test_vlm_pretraining_and_its_resume(tmp_path):
    SIZES["test"] = Size(64, 2, 64, 2, 2)
    config = VlmConfig(size="test", batch_size=8, num_questions=2, **quick(4, name="muon", ema_decay=0.9))
    folder = train_vlm(config, None, tmp_path / "whole")
    assert InternVLBackbone.load(folder).model.config.image_seq_length == 16
    stopped = config.model_copy(update={"loop": config.loop.model_copy(update={"max_seconds": 1e-9})})
    for i in range(3):
        with pytest.raises(RunError, match="out of time"):
            train_vlm(stopped, None, tmp_path / "parts", resume=i > 0)
    train_vlm(stopped, None, tmp_path / "parts", resume=True)
    a, b = ([m["loss"] for m in RunFolder(tmp_path / n).metrics()] for n in ("whole", "parts"))
    assert a == pytest.approx(b, rel=1e-4)
    assert a[-1] < a[0]


def test_a_vision_tower_learns_what_covers_its_patches_and_the_vlm_begins_from_it(tmp_path):
    SIZES["test"] = Size(64, 2, 64, 2, 2)
    config = VisionConfig(size="test", batch_size=8, **quick(16, name="muon", ema_decay=0.9))
    weights = pretrain_vision(config, tmp_path / "vision")
    losses = [m["loss"] for m in RunFolder(tmp_path / "vision").metrics()]
    assert sum(losses[-4:]) < sum(losses[:4])  # batches differ, so single steps prove nothing
    train_vlm(VlmConfig(size="test", batch_size=4, loop=LoopConfig(num_steps=0)), weights, tmp_path / "vlm")
    found = InternVLBackbone.load(tmp_path / "vlm" / "model").model.model.vision_tower.state_dict()
    assert all(torch.equal(v, found[k]) for k, v in load_file(weights).items())


def test_patches_name_the_object_that_covers_them_most():
    scene = Scene((Placed("red", "square", 12, 12, 30), Placed("cyan", "cross", 18, 36, 12)), "flat", "white")
    kinds, facts = patch_targets(scene, 6)
    grid = kinds.reshape(8, 8)
    assert grid[4, 1] == grid[5, 2] == 1  # red square
    assert grid[1, 5] == 5 * 5 + 4  # cyan cross
    assert grid[0, 0] == NOTHING
    assert facts.reshape(8, 8, 3)[1, 5] == pytest.approx([36 / 48, 12 / 48, 1])


def test_packed_lessons_equal_one_dialog_a_question():
    tokenizer = new_tokenizer()
    SIZES["test"] = Size(64, 2, 64, 2, 2)
    model, encoder = new_vlm("test", tokenizer), ChatEncoder(tokenizer, 16)
    rng = stream(0, "packed")
    lessons = [lesson(rng, 3), lesson(rng, 3), yes_or_no(lesson(rng, 9))]
    packed = list(map(LessonPacker(encoder, 3.0), lessons))
    batch = collate(packed, tokenizer.pad_token_id).to(torch.device("cpu"))
    prepare = Preprocessor.square(48)

    def read(ids, pixels, **more):
        seen = model.model.get_image_features(pixel_values=pixels)
        return model.model(input_ids=ids, mm_encoder_outputs={"image": seen}, use_cache=False, **more)[0]

    with torch.no_grad():
        together = read(
            batch.ids, prepare.frames(batch.pixels), attention_mask=batch.mask, position_ids=batch.positions
        )
        for row, (one, p) in enumerate(zip(lessons, packed, strict=True)):
            opening = [f"{one.request}\n"] if one.request else []
            opening += [f"prompt: {one.prompt}\n"] if one.prompt else []
            for i, image in enumerate(one.images):
                opening += [f"image {i + 1}: ", Media.from_numpy(image), "\n"]
            for k, (question, answer) in enumerate(one.turns, 1):
                alone = encoder.chat([("user", [*opening, question]), ("assistant", [answer])], generate=False)
                mine = [i for i, b in enumerate(p.branch) if b == k]
                pixels = prepare([media for media, _ in alone.images])
                expected = read(torch.tensor([alone.ids]), pixels)[0, -len(mine) :]
                torch.testing.assert_close(together[row, mine], expected, atol=1e-5, rtol=1e-4)


def test_a_request_leaves_what_it_asks_for_and_stands_where_judges_have_it():
    rng = stream(0, "requests")
    source, plain = LessonSource(None, 0.0, 0.3, 0.3, requests=0.5), LessonSource(None, 0.0, 0.3, 0.3)
    found = [source.draw(rng, 4) for _ in range(200)]
    asked = [x for x in found if x.request]
    assert 0.35 < len(asked) / len(found) < 0.65
    assert {a for x in asked for _, a in x.turns} == {"yes", "no"}
    assert not any(plain.draw(rng, 4).request for _ in range(20))
    silent = Lesson(None, asked[0].images, (("describe image 1.", "a red circle"),))
    assert yes_or_no(silent) is silent
    picture = Media.from_numpy(asked[0].images[0])
    spoken = Context(instruction=False).render(Comparison("a red circle", picture, picture))
    assert str(spoken[0]).startswith(f"{YES_OR_NO}\nprompt: a red circle")
    assert str(spoken[-1]).strip().startswith("question: ")
    assert all(q.startswith("question: ") for x in asked for q, _ in x.turns)


def test_loss_weights_single_out_one_word_answers():
    encoder = ChatEncoder(new_tokenizer(), 16)
    turns = (("is it red?", "yes"), ("describe image 1.", "flat drawing of a red circle on white"))
    found = LessonPacker(encoder, 3.0)(Lesson(None, (), turns))
    short = [w for w, b in zip(found.weights, found.branch, strict=True) if b == 1 and w]
    long = [w for w, b in zip(found.weights, found.branch, strict=True) if b == 2 and w]
    assert short == [3.0, 1.0]
    assert len(long) > 5
    assert set(long) == {1.0}


def test_preferences_follow_the_oracle_and_repeat(generator):
    config = PreferencesConfig(num_prompts=6, pictures=3, generator_share=0.5)
    first, second = (list(embedded_records(config, draw_images(generator, 4))) for _ in range(2))
    assert [r.source for r in first] == ["generator"] * 3 + ["rendered"] * 3
    for a, b in zip(first, second, strict=True):
        assert a.choices == b.choices
        assert [m.key for m in a.media] == [m.key for m in b.media]
        assert a.truth == pytest.approx([utility(judge(m.to_numpy(), a.prompt), a.criterion) for m in a.media])
        assert all(1 <= r <= 5 for r in a.ratings)


def test_mixed_records_hold_pictures_of_both_kinds_and_leave_the_others_alone(generator, monkeypatch):
    monkeypatch.setattr(preferences, "shows_held_out", lambda image: False)  # confetti shows anything
    plain = PreferencesConfig(num_prompts=6, pictures=4, generator_share=0.75)
    before, after = (
        list(embedded_records(c, draw_images(generator, 4)))
        for c in (plain, plain.model_copy(update={"mixed_share": 0.6}))
    )
    mixed = [i for i, r in enumerate(after) if r.source == "mixed"]
    assert 0 < len(mixed) < 4
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        same = [m.key == n.key for m, n in zip(a.media, b.media, strict=True)]
        assert same == ([True, True, False, False] if i in mixed else [True] * 4)
        assert (a.choices == b.choices) == (i not in mixed)
    held_out = plain.model_copy(update={"mixed_share": 1.0, "split": "held_out"})
    assert "mixed" not in [r.source for r in embedded_records(held_out, draw_images(generator, 4))]


def test_a_share_of_training_records_is_judged_overall():
    def criteria(split):
        return [r.criterion for r in embedded_records(PreferencesConfig(num_prompts=60, split=split))]

    assert 4 <= criteria("train").count("overall") <= 22
    assert set(criteria("held_out")) == {"fidelity"}


def test_training_shows_wrong_backgrounds_more_often():
    """The generator hardly draws them, and judges forgot that backgrounds matter."""

    def wrong(split):
        records = embedded_records(PreferencesConfig(num_prompts=80, split=split, generator_share=0.0))
        return np.mean(
            [detect(m.to_numpy()).background != parse(r.prompt).background for r in records for m in r.media]
        )

    assert wrong("train") > wrong("held_out") + 0.08


def test_previews_take_every_second_place(generator):
    with_previews = draw_images(generator, 4)(["a red circle"] * 2, 4, 0, True)
    without = draw_images(generator, 4)(["a red circle"] * 2, 4, 0, False)
    assert [len(rows) for rows in with_previews] == [4, 4]
    finished, preview = with_previews[0][:2]
    assert not np.array_equal(finished, preview)
    assert len(without[0]) == 4


def test_labels_agree_with_the_truth_unless_shuffled():
    def agreement(**changes):
        records = embedded_records(PreferencesConfig(num_prompts=60, **changes))
        pairs = [(c.label - 0.5, r.truth[c.first] - r.truth[c.second]) for r in records for c in r.choices]
        clear = [a * b > 0 for a, b in pairs if a and abs(b) > 0.1]
        return sum(clear) / len(clear)

    assert agreement() > 0.85
    assert 0.35 < agreement(shuffle_labels=True) < 0.65


def test_a_stopped_data_build_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarddance.jobs.data.build.SHARD", 4)
    config = PreferencesConfig(num_prompts=10, pictures=2)
    build_data(config, 3, None, tmp_path / "whole")
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        yield from embedded_records(*args)

    with monkeypatch.context() as patch:
        patch.setattr("rewarddance.jobs.data.build.embedded_records", failing)
        with pytest.raises(KeyboardInterrupt):
            build_data(config, 3, None, tmp_path / "parts")
    build_data(config, 3, None, tmp_path / "parts")
    for name in ("train", "id", "ood"):
        a, b = (pq.read_table(tmp_path / x / f"{name}.parquet") for x in ("whole", "parts"))
        assert a.equals(b)
    with pytest.raises(RunError, match=r"other settings \(num_held_out\)"):
        build_data(config, 5, None, tmp_path / "parts")
