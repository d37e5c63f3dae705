"""Qwen2.5-VL and Qwen3-VL, tiny and random: the engine equals transformers' forward pass, patches the official ones."""

import numpy as np
import pytest
import torch
from dialogs import WORDS, mixed_dialogs
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.patches import PatchPreprocessor
from rewarddance.vlm.qwen import CLASSES, QwenBackbone
from rewarddance.vlm.registry import load_backbone_folder


@pytest.fixture(params=sorted(CLASSES))
def backbone(request, new_qwen):
    return new_qwen(request.param)


@pytest.fixture
def pictures():
    rng = torch.Generator().manual_seed(0)
    sizes = [(56, 56), (56, 56), (90, 60), (64, 128), (56, 56)]
    return [Media(torch.rand(1, 3, h, w, generator=rng)) for h, w in sizes]


def plain(backbone, dialogs):
    """One full forward of the transformers model a dialog."""
    ids = [backbone.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in WORDS]
    rows = []
    for d in dialogs:
        e = backbone.encoder.chat([("user", d)])
        tokens = torch.tensor([e.ids])
        more = {}
        if e.images:
            more["pixel_values"] = torch.cat([backbone.prepare(m.frames[i]) for m, i in e.images])
            more["image_grid_thw"] = torch.tensor([(1, *backbone.prepare.grid(*m.size)) for m, _ in e.images])
            more["mm_token_type_ids"] = (tokens == backbone.image_token_id).int()
        rows.append(backbone.model(input_ids=tokens, **more).logits[0, -1][ids])
    return torch.stack(rows)


@pytest.mark.parametrize("budget", [200, 100_000])
def test_logits_equal_plain_forwards(backbone, pictures, budget):
    dialogs = mixed_dialogs(pictures)
    engine = Engine(backbone, budget=budget)
    found = engine.answer_logits(dialogs, WORDS).logits
    assert torch.allclose(found, plain(backbone, dialogs), atol=1e-5)
    assert engine.counts.images == 5


@pytest.mark.parametrize("limits", [{}, {"budget": 200, "image_budget": 2}], ids=["one_pass", "several"])
def test_gradients_equal_plain_forwards(backbone, pictures, limits):
    media = [Media(m.frames.clone().requires_grad_()) for m in pictures]
    dialogs = mixed_dialogs(media)
    inputs = [m.frames for m in media] + list(backbone.module.parameters())

    def gradients(logits):
        return torch.autograd.grad((logits[:, 0] - logits[:, 1]).square().sum(), inputs, allow_unused=True)

    ours = gradients(Engine(backbone, **limits).answer_logits(dialogs, WORDS).logits)
    theirs = gradients(plain(backbone, dialogs))
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b.norm() > 1e-6:
            assert (a - b).norm() / b.norm() < 1e-5


def test_positions_are_transformers_rope_index(backbone, pictures):
    for d in mixed_dialogs(pictures):
        e = backbone.encoder.chat([("user", d)])
        if not e.images:
            continue
        tokens = torch.tensor([e.ids])
        grids = torch.tensor([(1, *backbone.prepare.grid(*m.size)) for m, _ in e.images])
        wanted, _ = backbone.model.model.get_rope_index(tokens, (tokens == backbone.image_token_id).int(), grids)
        assert np.array_equal(backbone.positions(e), wanted[:, 0])


@pytest.mark.parametrize(("height", "width"), [(56, 84), (28, 140), (53, 100), (82, 290)])
@pytest.mark.parametrize("patch", [16, 14, 7])
def test_patches_are_the_official_ones(height, width, patch):
    """Exactly, but for rounding to bytes where a picture has to be resized; none of these loses height, which Pillow
    from 13 on would treat first and no checkpoint was trained with."""
    pixels = np.random.default_rng(0).integers(0, 2, (height, width, 3), np.uint8) * 255
    official = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, temporal_patch_size=2)
    wanted = official(Image.fromarray(pixels), return_tensors="pt")
    ours = PatchPreprocessor(patch)
    media = Media.from_numpy(pixels)
    assert tuple(wanted["image_grid_thw"][0, 1:].tolist()) == ours.grid(height, width)
    rounding = 0.0 if ours.size(height, width) == (height, width) else 1.5 / 255 / min(ours.std)
    assert float((ours(media.frames[0]) - wanted["pixel_values"]).abs().max()) <= 1e-5 + rounding


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 3000), (1080, 1920), (57, 11), (20_000, 20_000)])
def test_sizes_are_the_official_ones(height, width):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    ours = PatchPreprocessor()
    assert ours.size(height, width) == smart_resize(height, width, 28, ours.min_pixels, ours.max_pixels)


def test_a_hair_is_refused():
    with pytest.raises(InputError, match="too narrow"):
        PatchPreprocessor().size(1, 500)


def test_a_backbone_survives_the_disk(backbone, pictures, tmp_path):
    backbone.save(tmp_path)
    again = load_backbone_folder(tmp_path)
    assert isinstance(again, QwenBackbone)
    assert again.prepare == backbone.prepare
    dialogs = mixed_dialogs(pictures)
    found, wanted = (Engine(b).answer_logits(dialogs, WORDS).logits for b in (again, backbone))
    assert torch.allclose(found, wanted, atol=1e-6)


def test_unknown_architectures_name_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="'bert' is not supported; known: 'internvl', 'qwen2_5_vl', 'qwen3_vl'"):
        load_backbone_folder(tmp_path)
