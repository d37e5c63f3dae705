"""Batches of the embedded models' trainings: pure functions of seed and step, equal whoever makes them."""

import pickle
from dataclasses import fields, is_dataclass
from functools import partial

import numpy as np
import pytest
import torch

from rewarddance.core.clip_frames import ClipFrames
from rewarddance.core.loop import Loop
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.prefetch import Feed
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import stream
from rewarddance.vlm.encoding import ChatEncoder
from rewarddance.vlm.plan import common_prefix
from rewarddance.world.build.autoencoder import noise_like, training_pictures
from rewarddance.world.build.generator import GeneratorConfig
from rewarddance.world.build.generator import training_pictures as captioned
from rewarddance.world.build.large_batches import LARGE, vision_settings, vlm_settings
from rewarddance.world.build.lesson_batches import LessonBatches, LessonSource, Stages
from rewarddance.world.build.packing import LessonPacker, collate
from rewarddance.world.build.tiny_vlm import SIZES, Size, new_vlm
from rewarddance.world.build.vision import NOTHING, VisionBatches
from rewarddance.world.build.vlm import VlmTraining
from rewarddance.world.build.vlm_config import VlmConfig
from rewarddance.world.lessons import Lesson, lesson, yes_or_no
from rewarddance.world.motion.lessons import clip_lesson


def lesson_batches(tokenizer, **changes):
    packer = LessonPacker(ChatEncoder(tokenizer, 16), 3.0)
    source = LessonSource(None, 0.4, 0.4, 0.0, 0.3)
    given = {"num": 6, "per_pass": 4, "pad": 0, "stages": Stages(0.0, (0.0, 1.0))} | changes
    return LessonBatches(source, packer, "vlm", 0, num_questions=2, **given)


def same(a, b):
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lessons", "vision", "autoencoder", "generator"])
def test_batches_are_equal_whatever_the_number_of_workers(kind, tokenizer):
    make = {
        "lessons": lambda: lesson_batches(tokenizer),
        "vision": lambda: VisionBatches(0, "vision", 4, 6, 0.3),
        "autoencoder": lambda: partial(training_pictures, 0, 3),
        "generator": lambda: partial(captioned, GeneratorConfig(batch_size=3)),
    }[kind]()
    with Feed(make, 4, workers=2) as feed:
        ahead = [feed(i) for i in range(4)]
    alone = [make(i) for i in range(4)]
    assert same(ahead, alone)
    assert not same(alone[0], alone[1])
    with Feed(make, 4, workers=1) as feed:  # as a resumed run
        assert same(feed(2), alone[2])


def test_makers_travel_to_other_processes_and_give_the_same_there(tokenizer):
    for make in (lesson_batches(tokenizer), VisionBatches(0, "vision", 4, 6, 0.3)):
        before = make(3)
        assert same(pickle.loads(pickle.dumps(make))(3), before)


def test_two_processes_make_the_batches_of_one_in_turns(tokenizer):
    first, second = (lesson_batches(tokenizer, world=2, rank=r, stages=Stages(0.0)) for r in (0, 1))
    alone = lesson_batches(tokenizer, stages=Stages(0.0))
    assert same([first(1), second(1)], [alone(2), alone(3)])


def test_stages_follow_each_other():
    stages = Stages(4, (1, 3))
    assert [stages.of(i) for i in range(6)] == ["renders", "relations", "relations", "renders", "all", "all"]


def packed_by_dialogs(lesson, encoder, verdict_weight):
    """Every turn as a whole dialog by `ChatEncoder`; the tokens that all begin with are kept once."""
    opening = [f"{lesson.request}\n"] if lesson.request else []
    opening += [f"prompt: {lesson.prompt}\n"] if lesson.prompt else []
    for i, image in enumerate(lesson.images):
        media = Media.from_numpy(image, fps=4.0 if image.ndim == 4 else None)
        opening += [f"image {i + 1}: ", media, "\n"]
    turns = [encoder.chat([("user", [*opening, q]), ("assistant", [a])], generate=False) for q, a in lesson.turns]
    shared = min(min(common_prefix(turns[0].ids, t.ids), t.answers.index(True)) for t in turns)
    ids, branch = list(turns[0].ids[:shared]), [0] * shared
    positions, weights = list(range(shared)), [0.0] * shared
    for k, turn in enumerate(turns, 1):
        own, answers = turn.ids[shared:], turn.answers[shared:]
        ids += own
        branch += [k] * len(own)
        positions += range(shared, shared + len(own))
        first = answers.index(True)
        weights += [verdict_weight if i == first and sum(answers) == 2 else float(a) for i, a in enumerate(answers)]
    return ids, branch, positions, weights


def test_packing_by_parts_equals_packing_whole_dialogs(tokenizer):
    encoder, rng = ChatEncoder(tokenizer, 16), stream(0, "packing")
    encoder.clips = ClipFrames(fps=4.0)
    packer = LessonPacker(encoder, 3.0)
    lessons = [lesson(rng, 3) for _ in range(40)] + [clip_lesson(rng, 2) for _ in range(6)]
    lessons += [yes_or_no(x) for x in lessons[:10]] + [Lesson(None, (), (("is it red?", "yes"), ("is it?", "no no")))]
    for x in lessons:
        packed = packer(x)
        found = [v.tolist() for v in (packed.ids, packed.branch, packed.positions, packed.weights)]
        assert found == list(packed_by_dialogs(x, encoder, 3.0))


def test_answers_and_pixels_arrive_as_they_were(tokenizer):
    packer, rng = LessonPacker(ChatEncoder(tokenizer, 16), 3.0), stream(0, "arrive")
    lessons = [lesson(rng, 2), clip_lesson(rng, 2), lesson(rng, 2)]
    packed = list(map(packer, lessons))
    tensors = collate(packed, tokenizer.pad_token_id).to(torch.device("cpu"))
    expected = [(int(t), float(w)) for p in packed for t, w in zip(p.ids, p.weights, strict=True) if w > 0]
    assert list(zip(tensors.targets.tolist(), tensors.weights.tolist(), strict=True)) == expected
    assert torch.equal(tensors.ids.flatten()[tensors.before + 1], tensors.targets)
    pictures = [Media.from_numpy(image).frames for x in lessons for image in x.images]
    assert torch.equal(tensors.pixels, torch.cat(pictures))


def test_passes_of_a_step_add_up_to_one_pass(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "test", Size(64, 1, 32, 1, 1))
    gradients, losses = [], []
    for per_pass in (2, 6):
        config = VlmConfig(size="test", batch_size=6, micro_batch=per_pass, num_questions=1, precision="fp32")
        model = new_vlm("test", tokenizer)
        loop = Loop({"vlm": model}, OptimConfig(), LoopConfig(num_steps=1), RunFolder(tmp_path))
        with VlmTraining(config, model, tokenizer, loop) as run:
            losses.append(float(run.step(0)["loss"]))
        gradients.append(model.lm_head.weight.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_noise_of_the_cpu_is_that_of_torch():
    x = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(3)
    found = noise_like(x)
    torch.manual_seed(3)
    assert torch.equal(found, torch.randn_like(x))
    torch.manual_seed(3)
    assert torch.equal(noise_like(x, torch.contiguous_format), torch.manual_seed(3) and torch.randn(2, 3, 4, 4))


def test_rates_follow_batch_and_width():
    small, large = vlm_settings("tiny-2m", 2400), vlm_settings("tiny-200m", 1200, large=True, device="cpu", workers=2)
    assert small == VlmConfig(loop=small.loop)
    assert small.loop.num_steps == 2400
    assert (large.batch_size, large.micro_batch) == (LARGE["tiny-200m"].size, LARGE["tiny-200m"].per_pass)
    assert large.drawn_from == 500
    assert large.optim.lr == pytest.approx(4e-3 * (256 / 512) ** 0.5 * (128 / 896) ** 0.5)
    vision = vision_settings("tiny-20m", 100, large=True)
    assert vision.optim.lr == pytest.approx(4e-3 * (128 / 256) ** 0.5)


def test_sizes_have_the_parameters_of_their_names(tokenizer):
    with torch.device("meta"):
        found = {n: sum(p.numel() for p in new_vlm(n, tokenizer).parameters()) / 1e6 for n in LARGE}
    assert found == pytest.approx({"tiny-2m": 2.3, "tiny-20m": 22.6, "tiny-200m": 238}, rel=0.1)


def test_vision_targets_belong_to_their_pictures():
    batch = VisionBatches(0, "vision", 3, 6, 0.0)(0)
    assert batch.pictures.shape == (3, 48, 48, 3)
    assert batch.kinds.shape == (3, 64)
    assert ((batch.facts != 0).any(-1) <= (batch.kinds < NOTHING)).all()
