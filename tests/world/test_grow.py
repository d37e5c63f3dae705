import pytest
import torch

from rewarddance.core.errors import ConfigError
from rewarddance.world.build.grow import grow_vlm
from rewarddance.world.build.tiny_vlm import SIZES, Size, new_vlm


@pytest.fixture
def small(tokenizer, monkeypatch):
    """Every parameter random, also those that begin as zeros and ones."""
    monkeypatch.setitem(SIZES, "small", Size(64, 2, 64, 3, 2))
    model = new_vlm("small", tokenizer, seed=1)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=random)
    return model


def asked(tokenizer, pictures=2):
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(10, len(tokenizer) - 5, (2, 50), generator=random)
    ids[:, 4 : 4 + 16 * pictures] = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    return {"input_ids": ids, "pixel_values": torch.randn(2 * pictures, 3, 48, 48, generator=random)}


@pytest.mark.parametrize(
    "size", [Size(128, 2, 64, 3, 2), Size(64, 2, 192, 3, 6), Size(64, 5, 64, 4, 2), Size(128, 3, 192, 7, 6)]
)
def test_a_grown_vlm_gives_the_same_logits(small, tokenizer, monkeypatch, size):
    monkeypatch.setitem(SIZES, "large", size)
    large = grow_vlm(small, "large", tokenizer)
    inputs = asked(tokenizer)
    with torch.no_grad():
        before, after = small(**inputs).logits, large(**inputs).logits
    assert before.std() > 0.1
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert large.lm_head.weight is large.model.language_model.embed_tokens.weight


def test_copies_of_a_unit_are_not_trained_in_step(small, tokenizer, monkeypatch):
    monkeypatch.setitem(SIZES, "large", Size(128, 2, 128, 3, 4))
    for noise, apart in ((0.0, False), (0.5, True)):
        large = grow_vlm(small, "large", tokenizer, noise=noise)
        large(**asked(tokenizer)).logits[:, -1, :5].sum().backward()
        grad = large.model.language_model.layers[0].mlp.up_proj.weight.grad
        first, second = grad[: len(grad) // 2], grad[len(grad) // 2 :]
        assert torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max())) is not apart


def test_layers_that_add_nothing_yet_can_learn(small, tokenizer, monkeypatch):
    monkeypatch.setitem(SIZES, "large", Size(64, 4, 64, 6, 2))
    large = grow_vlm(small, "large", tokenizer)
    large(**asked(tokenizer)).logits[:, -1, :5].sum().backward()
    quiet = large.model.language_model.layers[1].mlp.down_proj.weight
    assert not quiet.detach().any()
    assert quiet.grad.abs().max() > 0
    monkeypatch.setitem(SIZES, "large", Size(128, 4, 128, 6, 4))
    large = grow_vlm(small, "large", tokenizer)
    large(**asked(tokenizer)).logits[:, -1, :5].sum().backward()
    for layer in (
        large.model.language_model.layers[1],
        large.model.vision_tower.encoder.layer[1],
    ):  # copies, made wider too
        grad = (layer.mlp.up_proj if hasattr(layer.mlp, "up_proj") else layer.mlp.fc1).weight.grad
        first, second = grad[: len(grad) // 2], grad[len(grad) // 2 :]
        assert not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max()))
    assert large.model.vision_tower.encoder.layer[1].mlp.fc2.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (Size(96, 2, 64, 3, 2), "vision hidden_size 64 and 96"),
        (Size(64, 2, 128, 3, 2), "text num_attention_heads 2 and 2"),
        (Size(64, 2, 64, 2, 2), "num_hidden_layers 3 and 2"),
        (Size(64, 2, 64, 3, 2, patch=12), "patch_size"),
    ],
)
def test_what_cannot_be_grown_is_named(small, tokenizer, monkeypatch, size, says):
    monkeypatch.setitem(SIZES, "large", size)
    with pytest.raises(ConfigError, match=f"cannot be grown to large: .*{says}"):
        grow_vlm(small, "large", tokenizer)


def test_every_size_of_the_dial_can_be_grown_from_the_smallest():
    """Head sizes and multiples alone; the largest is not built here."""
    least = SIZES["tiny-2m"]
    for s in (SIZES[name] for name in ("tiny-2m", "tiny-20m", "tiny-200m")):
        assert s.vision_width % least.vision_width == s.text_width % least.text_width == 0
        assert s.text_width // s.heads == 32
        assert s.vision_layers >= least.vision_layers
        assert s.text_layers >= least.text_layers
