"""CLIP and DINOv2 from local folders: the pixels of transformers' own processors, the models' own vectors."""

import numpy as np
import pytest
import torch
from tiny_clip import tiny_clip
from transformers import Dinov2Config, Dinov2Model

from rewarddance.core.media import Media
from rewarddance.vlm.embedders import ClipEmbedder, Crop, DinoEmbedder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_clip_gives_unit_vectors_of_pictures_and_texts(clip_folder, pictures):
    clip = ClipEmbedder.load(clip_folder)
    vectors, texts = clip(pictures), clip.texts(["a b", "c"])
    assert vectors.shape == (8, 8)
    assert torch.cat([vectors, texts]).norm(dim=1).tolist() == pytest.approx([1.0] * 10, abs=1e-5)
    assert torch.allclose(clip.texts(["c"])[0], texts[1], atol=1e-6)  # padding changes nothing
    pixels = clip.prepare(pictures)
    expected = clip.model.get_image_features(pixel_values=pixels).pooler_output
    assert torch.allclose(vectors, torch.nn.functional.normalize(expected, dim=-1), atol=1e-6)
    assert clip.num_cut(["a b", "a b c d e f g"]) == 1


def test_clip_is_differentiable_to_pixels(clip_folder):
    pixels = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(1), requires_grad=True)
    clip = ClipEmbedder.load(clip_folder)
    (clip([Media(pixels)]) @ clip.texts(["a"]).T).sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert all(p.grad is None for p in clip.model.parameters())


def test_the_crop_takes_the_centre_of_the_shortest_side_scaled():
    ramp = torch.linspace(0, 1, 60).expand(1, 3, 30, 60).contiguous()
    crop = Crop(30, 30, 30, (0.0,) * 3, (1.0,) * 3)
    assert torch.allclose(crop([Media(ramp)]), ramp[..., 15:45])
    half = Crop(15, 15, 15, (0.5,) * 3, (0.5,) * 3)([Media(torch.full((1, 3, 90, 30), 0.75))])
    assert half.shape == (1, 3, 15, 15)
    assert torch.allclose(half, torch.tensor(0.5))


def test_dino_gives_the_class_token(tmp_path, pictures):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}'
    )
    dino = DinoEmbedder.load(tmp_path)
    found = dino(pictures[:2])
    state = dino.model(pixel_values=dino.prepare(pictures[:2])).last_hidden_state[:, 0]
    assert np.allclose(found.detach(), state.detach())
