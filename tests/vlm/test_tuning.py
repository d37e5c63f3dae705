import pytest
import torch

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.vlm.engine import Engine
from rewarddance.vlm.tuning import add_lora, checkpoint_gradients, merged, set_dropout


def margins(backbone, pictures):
    a, b, c = pictures[:3]
    dialogs = [(f"prompt: {p}\n", x, y, "better?") for p in ("a", "b") for x, y in ((a, b), (a, c), (b, c))]
    logits = Engine(backbone).answer_logits(dialogs, ("yes", "no")).logits
    return logits[:, 0] - logits[:, 1]


def test_checkpointed_gradients_are_the_same(backbone, pictures):
    media = [Media(m.frames.clone().requires_grad_()) for m in pictures]
    inputs = [media[0].frames, *(p for n, p in backbone.module.named_parameters() if "k_proj.bias" not in n)]
    backbone.module.train()

    def gradients():
        return torch.autograd.grad(margins(backbone, media).square().sum(), inputs, allow_unused=True)

    wanted = gradients()
    checkpoint_gradients(backbone)
    found = gradients()
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-8)


def test_adapters_start_as_nothing_learn_and_merge(backbone, pictures):
    before = margins(backbone, pictures).detach()
    tuner = add_lora(backbone, rank=2, alpha=4.0)
    trained = {n: p for n, p in backbone.module.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in n and "language_model" in n and p.dtype == torch.float32 for n, p in trained.items())
    assert torch.allclose(margins(backbone, pictures), before, atol=1e-6)
    for n, p in trained.items():
        if "lora_B" in n:
            torch.nn.init.normal_(p, std=0.1)
    after = margins(backbone, pictures).detach()
    assert not torch.allclose(after, before, atol=1e-3)
    whole, lost = merged(backbone.module.state_dict(), 2, 4.0)
    tuner.unload()
    assert not any("lora" in n for n, _ in backbone.module.named_parameters())
    backbone.module.load_state_dict(whole)
    assert torch.allclose(margins(backbone, pictures), after, atol=1e-5)
    assert lost < 1e-5


@pytest.mark.parametrize(("size", "low", "high"), [(1.0, 0.0, 0.02), (1e-3, 0.2, 1.1), (1e-6, 0.99, 1.0)])
def test_what_rounding_takes_from_merged_adapters_is_counted(size, low, high):
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(32, 16, generator=rng).bfloat16()
    down, up = torch.randn(2, 16, generator=rng), size * torch.randn(32, 2, generator=rng)
    state = {"q.base_layer.weight": base, "q.lora_A.default.weight": down, "q.lora_B.default.weight": up}
    whole, lost = merged(state, 2, 4.0)
    assert low <= lost <= high
    exact = base.double() + 2.0 * (up.double() @ down.double())
    assert torch.equal(whole["q.weight"], exact.bfloat16()) or size < 1e-3
    wanted = (whole["q.weight"].double() - exact).norm() / (exact - base.double()).norm()
    assert lost == pytest.approx(float(wanted), rel=1e-2)


def test_adapters_name_layers_that_do_not_exist(backbone):
    with pytest.raises(ConfigError, match="no such layers"):
        add_lora(backbone, 2, 4.0, targets=("w_pack",))


def test_a_frozen_tower_drops_nothing(backbone):
    backbone.vision.requires_grad_(False)
    set_dropout(backbone, 0.5)
    shares = {n: m.attention_dropout for n, m in backbone.module.named_modules() if hasattr(m, "attention_dropout")}
    assert {v for n, v in shares.items() if "language_model" in n} == {0.5}
    assert {v for n, v in shares.items() if "vision_tower" in n} == {0.0}


def test_dropout_works_in_training_only(backbone, pictures):
    set_dropout(backbone, 0.5)
    backbone.module.train()
    assert not torch.equal(margins(backbone, pictures), margins(backbone, pictures))
    backbone.module.eval()
    assert torch.equal(margins(backbone, pictures), margins(backbone, pictures))
