"""Clips through the engine: transformers' own text, positions and answers, time that is seen, every frame once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dialogs import WORDS, question
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as qwen2_size
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from rewarddance.core.clip_frames import ClipFrames
from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.patches import PatchPreprocessor
from rewarddance.vlm.qwen import CLIP_CONTEXT, MARKS
from rewarddance.vlm.registry import load_backbone_folder

KINDS = ("internvl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture
def make(backbone, new_qwen):
    """A random, tiny model of a kind that looks at 4 frames a second."""

    def build(kind, **rule):
        model = backbone if kind == "internvl" else new_qwen(kind)
        model.sample_clips(ClipFrames(**rule or {"fps": 4}))
        return model

    return build


@pytest.fixture
def clips():
    """Clips of 9 frames at 8 a second: two that share their first two frames, one smaller, one with a frame more."""
    rng = torch.Generator().manual_seed(0)
    a, b, d = (torch.rand(n, 3, 64, 64, generator=rng) for n in (9, 9, 13))
    b[:3] = a[:3]
    return [Media(a, 8.0), Media(b, 8.0), Media(torch.rand(9, 3, 48, 80, generator=rng), 8.0), Media(d, 8.0)]


def dialogs_of(clips, picture):
    a, b, c, d = clips
    pairs = [question("a red circle", x, y) for x, y in ((a, b), (b, a), (a, a))]
    return [*pairs, question("it moves", c), question("and so", a, picture, d, d), ("is it?",)]


def official(backbone, dialog):
    """Logits of transformers' own model on inputs made as its processor makes them (it needs torchvision)."""
    encoded = backbone.encoder.chat([("user", dialog)])
    ids = torch.tensor([encoded.ids])
    media = [p for p in dialog if isinstance(p, Media)]
    rule = backbone.encoder.clips
    shown = [m.frames[list(rule.of(m.num_frames, m.fps).indices)] if m.is_clip else m.frames for m in media]
    if backbone.model.config.model_type == "internvl":
        pixels = torch.cat([backbone.prepare.frames(f) for f in shown]) if media else None
        return backbone.model(input_ids=ids, pixel_values=pixels).logits[0, -1]
    inputs, values, grids = {}, {1: [], 2: []}, {1: [], 2: []}
    for m, frames in zip(media, shown, strict=True):
        num = len(frames) if m.is_clip else None
        height, width = backbone.prepare.size(*m.size, None, num)
        if m.is_clip and len(frames) % 2:
            frames = torch.cat([frames, frames[-1:]])
        x = torch.nn.functional.interpolate(frames, (m.size[0], width), mode="bicubic", antialias=True).clamp(0, 1)
        x = torch.nn.functional.interpolate(x, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
        x = (x - torch.tensor(backbone.prepare.mean)[:, None, None]) / torch.tensor(backbone.prepare.std)[:, None, None]
        x = x if m.is_clip else x.repeat(2, 1, 1, 1)
        p, t = backbone.prepare.patch, len(x) // 2
        x = x.view(t, 2, 3, height // p // 2, 2, p, width // p // 2, 2, p).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        values[1 + m.is_clip].append(x.reshape(-1, 3 * 2 * p * p))
        grids[1 + m.is_clip].append((t, height // p, width // p))
    if values[1]:
        inputs |= {"pixel_values": torch.cat(values[1]), "image_grid_thw": torch.tensor(grids[1])}
    if values[2]:
        inputs |= {"pixel_values_videos": torch.cat(values[2]), "video_grid_thw": torch.tensor(grids[2])}
        if backbone.model.config.model_type == "qwen2_5_vl":
            rates = [rule.of(m.num_frames, m.fps).rate for m in media if m.is_clip]
            inputs["second_per_grid_ts"] = torch.tensor([2 / r for r in rates])
    config = backbone.model.config
    types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    grids = {k: v for k, v in inputs.items() if k.endswith("thw") or k.startswith("second")}
    if media:
        wanted, _ = backbone.model.model.get_rope_index(ids, types, **grids)
        assert np.array_equal(backbone.positions(encoded), wanted[:, 0])
    return backbone.model(input_ids=ids, mm_token_type_ids=types, **inputs).logits[0, -1]


def answers(backbone, dialogs):
    ids = [backbone.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in WORDS]
    return torch.stack([official(backbone, d)[ids] for d in dialogs])


@pytest.mark.parametrize("rule", [{"fps": 4}, {"num_frames": 3}, {"fps": 16}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(make, kind, rule, clips, pictures):
    backbone = make(kind, **rule)
    dialogs = dialogs_of(clips, pictures[0])
    for budget in (300, 100_000):
        logits = Engine(backbone, budget=budget).answer_logits(dialogs, WORDS).logits
        torch.testing.assert_close(logits, answers(backbone, dialogs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_to_pixels_are_those_of_transformers(make, kind, clips, pictures):
    backbone = make(kind)
    media = [Media(m.frames.clone().requires_grad_(), m.fps) for m in clips]
    dialogs = dialogs_of(media, pictures[0])

    def gradients(logits):
        weights = torch.arange(1.0, 1 + len(logits))
        return torch.autograd.grad((weights * (logits[:, 0] - logits[:, 1])).sum(), [m.frames for m in media])

    ours = gradients(Engine(backbone).answer_logits(dialogs, WORDS).logits)
    theirs = gradients(answers(backbone, dialogs))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() / b.norm() < 1e-4
    assert float(ours[0][1].norm()) == 0  # frame 1 is not looked at
    assert float(ours[0][2].norm()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_that_of_transformers_processors(make, kind, clips):
    backbone = make(kind)
    clip = clips[0]
    encoded = backbone.encoder.chat([("user", (clip,))])
    count, around = backbone.encoder.count(clip), backbone.encoder.around(("user",), True)
    if kind == "internvl":
        own = SimpleNamespace(start_image_token="<img>", image_token="<IMG_CONTEXT>", end_image_token="</img>",
                              image_seq_length=count)  # fmt: skip
        text = InternVLProcessor.replace_video_token(own, {"pixel_values_videos": [torch.zeros(5, 3, 1, 1)]}, 0) + "\n"
    else:
        height, width = (n for n in backbone._grid(clip))
        inputs = {"video_grid_thw": torch.tensor([[3, height, width]])}
        inputs["video_metadata"] = [SimpleNamespace(fps=8.0, frames_indices=[0, 2, 4, 6, 8])]
        start, context, end = MARKS[0], CLIP_CONTEXT, MARKS[2]
        own = SimpleNamespace(video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
                              vision_start_token=start, vision_end_token=end, video_token=context)  # fmt: skip
        own._calculate_timestamps = lambda *args: Qwen3VLProcessor._calculate_timestamps(own, *args)
        text = Qwen3VLProcessor.replace_video_token(own, inputs, 0)
        if kind == "qwen2_5_vl":
            text = f"{start}{context * 3 * count}{end}"
        else:
            assert text.startswith("<0.1 seconds>")
    wanted = backbone.tokenizer(around[0] + text + around[1], add_special_tokens=False)["input_ids"]
    assert list(encoded.ids) == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [{"fps": 4}, {"num_frames": 5}], ids=str)
def test_a_faster_clip_is_another_question(make, kind, rule, clips):
    """The same frames at twice the rate: at a rate the judge sees fewer, by number it sees other times."""
    backbone = make(kind, **rule)
    frames = clips[0].frames
    still = Media(frames[:1].repeat(9, 1, 1, 1), 8.0)
    for clip in (clips[0], still):
        fast = Media(clip.frames, 16.0)
        dialogs = [question("x", clip, fast), question("x", fast, clip), question("x", clip, clip)]
        logits = Engine(backbone).answer_logits(dialogs, WORDS).logits
        assert len({round(v, 6) for v in (logits[:, 0] - logits[:, 1]).tolist()}) == 3
        torch.testing.assert_close(logits, answers(backbone, dialogs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_clip_at_another_rate_is_the_same_question(make, kind, clips):
    """Saved at 16 frames a second with every frame twice."""
    backbone = make(kind)
    double = Media(clips[0].frames.repeat_interleave(2, 0)[:-1], 16.0)
    engine = Engine(backbone)
    logits = engine.answer_logits([question("x", clips[0]), question("x", double)], WORDS).logits
    assert torch.equal(logits[0], logits[1])
    assert engine.counts.images == (5 if kind == "internvl" else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_distinct_frame_is_seen_once(make, kind, clips):
    backbone = make(kind, fps=8)
    engine = Engine(backbone)
    a, b, *_ = clips  # b begins with three frames of a
    engine.answer_logits([question("x", a, b), question("x", b, a)], WORDS)
    assert engine.counts.images == (9 + 6 if kind == "internvl" else 5 + 4)
    still = Media(a.frames[:1].repeat(9, 1, 1, 1), 8.0)
    engine.answer_logits([question("x", still)], WORDS)
    assert engine.counts.images == 1
    engine.answer_logits([question("x", Media(a.frames[:1]), still, Media(still.frames, 4.0))], WORDS)
    assert engine.counts.images == 1  # the first frame of image-to-video too
    with torch.no_grad():
        backbone.module.requires_grad_(False)
        cached = Engine(backbone, image_cache=8, portion=1)
        dialogs = [question("x", a), question("y", a), question("x", still)]
        whole = Engine(backbone).answer_logits(dialogs, WORDS).logits
        torch.testing.assert_close(cached.answer_logits(dialogs, WORDS).logits, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_written_about_clips(make, kind, clips, pictures):
    """Generation, which is transformers' own, begins with the engine's likeliest word."""
    backbone = make(kind)
    dialog = question("x", clips[0], pictures[0], clips[3], clips[3])
    engine = Engine(backbone)
    with torch.no_grad():
        first = backbone.logits(engine.answer_hidden([dialog]))[0].argmax()
    text = backbone.tokenizer.decode([int(first)], skip_special_tokens=True).strip()
    assert backbone.generate([dialog], max_tokens=1) == [text]


def test_a_clip_without_a_rate_is_one_line(make, clips):
    engine = Engine(make("internvl"))
    with pytest.raises(InputError, match=r"^a\.mp4: a clip of 9 frames without frames per second; give `fps`"):
        engine.answer_logits([question("x", Media(clips[0].frames, origin="a.mp4"))], WORDS)
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="frames per second; needs a number above 0"):
            Media(clips[0].frames, fps)


@pytest.mark.parametrize("bounds", [(4096, 25_165_824), (131_072, 786_432), (200_000, 300_000)])
def test_sizes_of_clips_are_those_of_qwen3(bounds):
    ours = PatchPreprocessor(16, clip_min_pixels=bounds[0], clip_max_pixels=bounds[1], whole_clips=True)
    for frames in (2, 3, 5, 9, 32):
        for h, w in ((48, 48), (20, 90), (480, 832), (720, 1280), (33, 31)):
            wanted = smart_resize(frames, h, w, 2, 32, *bounds)
            assert ours.size(h, w, None, frames) == wanted, (frames, h, w)


@pytest.mark.parametrize("bounds", [(128 * 28 * 28, 768 * 28 * 28), (4096, 100_000), (500_000, 600_000)])
def test_sizes_of_clips_are_those_of_qwen2(bounds):
    """Qwen2.5-VL's processor bounds every frame, so the number of frames does not matter."""
    ours = PatchPreprocessor(14, clip_min_pixels=bounds[0], clip_max_pixels=bounds[1])
    for h, w in ((48, 48), (20, 90), (480, 832), (720, 1280), (1080, 1920), (33, 31)):
        wanted = qwen2_size(h, w, 28, *bounds)
        for frames in (2, 3, 5, 9, 32):
            assert ours.size(h, w, None, frames) == wanted, (frames, h, w)
        assert ours.size(h, w) == qwen2_size(h, w, 28, ours.min_pixels, ours.max_pixels)


def test_settings_of_clips_survive_the_disk(new_qwen, tmp_path):
    from dataclasses import replace

    backbone = new_qwen("qwen3_vl")
    backbone.prepare = replace(backbone.prepare, clip_min_pixels=4096, clip_max_pixels=90_000)
    backbone.save(tmp_path)
    assert load_backbone_folder(tmp_path).prepare == backbone.prepare
