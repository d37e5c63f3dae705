"""The three policies of a generator: trained, reference and old."""

import pytest
import torch
from torch.nn.functional import linear

from rewarddance.core.errors import ConfigError
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.generator.trace import sample_latents

PROMPTS = ["flat drawing of a red circle on white"]


def weights(generator, adapter):
    part = f".{adapter}."
    return {n.replace(part, "."): p for n, p in generator.transformer.named_parameters() if part in n and "lora_" in n}


def disturb(generator, seed, std=0.1):
    """Move the trained adapter, as an optimizer would."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in weights(generator, "default").values():
            p.add_(torch.randn(p.shape, generator=rng), alpha=std)


@pytest.fixture
def start(generator):
    """A latent and its condition."""
    return generator.noise(1, torch.Generator().manual_seed(0)), generator.condition(PROMPTS)


@pytest.fixture
def tuned(generator):
    """A generator with an adapter that does something, and an old policy that does something else."""
    torch.manual_seed(0)
    generator.add_lora(4, 16.0)
    disturb(generator, 1)
    generator.add_old()
    disturb(generator, 2)
    return generator


def flags(generator):
    return {n: p.requires_grad for n, p in generator.transformer.named_parameters()}


def test_the_old_policy_begins_as_the_trained_one_and_stays_behind(generator, start):
    z, condition = start
    base = generator.velocity(z, 0.5, condition)
    generator.add_lora(4, 16.0)
    disturb(generator, 1)
    before = generator.velocity(z, 0.5, condition)
    generator.add_old()
    assert torch.equal(generator.velocity(z, 0.5, condition), before)
    disturb(generator, 2)
    with generator.policy("old"):
        assert torch.equal(generator.velocity(z, 0.5, condition), before)
    with generator.policy("reference"):
        assert torch.equal(generator.velocity(z, 0.5, condition), base)
    assert (generator.velocity(z, 0.5, condition) - before).abs().max() > 1e-3


def test_adding_an_old_policy_draws_no_random_numbers(generator):
    generator.add_lora(4, 16.0)
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    generator.add_old()
    assert torch.equal(torch.randn(4), expected)


def test_the_old_policy_is_an_exponential_average(tuned):
    old, trained = ({n: p.detach().clone() for n, p in weights(tuned, a).items()} for a in ("old", "default"))
    assert old.keys() == trained.keys()
    tuned.update_old(0.75)
    for name, p in weights(tuned, "old").items():
        expected = 0.75 * old[name].double() + 0.25 * trained[name].double()
        torch.testing.assert_close(p.double(), expected, rtol=0, atol=1e-7)
    for name, p in weights(tuned, "default").items():
        assert torch.equal(p, trained[name])
    tuned.update_old(1.0)
    assert not torch.equal(*(torch.cat([p.flatten() for p in weights(tuned, a).values()]) for a in ("old", "default")))
    with pytest.raises(ValueError, match=r"decay 1\.5: must be from 0 to 1"):
        tuned.update_old(1.5)


def test_decay_zero_copies_bit_for_bit(tuned, start):
    tuned.update_old(0.0)
    for name, p in weights(tuned, "old").items():
        assert torch.equal(p, weights(tuned, "default")[name])
    z, condition = start
    with tuned.policy("old"):
        old = tuned.velocity(z, 0.5, condition)
    assert torch.equal(old, tuned.velocity(z, 0.5, condition))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("policy", ["reference", "old", "trained"])
def test_switching_leaves_every_requires_grad_as_it_is(tuned, start, policy, grad):
    before = flags(tuned)
    assert {n for n, flag in before.items() if flag} == {n for n in before if "lora_" in n and ".default." in n}
    with torch.set_grad_enabled(grad), tuned.policy(policy):
        assert flags(tuned) == before
        tuned.velocity(*start[:1], 0.5, start[1])
    assert flags(tuned) == before


def test_policies_may_be_nested_and_end_with_an_error(tuned, start):
    z, condition = start

    def velocity():
        with torch.no_grad():
            return tuned.velocity(z, 0.5, condition)

    trained = velocity()
    with tuned.policy("old"):
        old = velocity()
        with tuned.policy("reference"):
            reference = velocity()
            with tuned.policy("trained"):
                assert torch.equal(velocity(), trained)
            assert torch.equal(velocity(), reference)
        assert torch.equal(velocity(), old)
    with pytest.raises(ZeroDivisionError), tuned.policy("old"):
        raise ZeroDivisionError
    assert torch.equal(velocity(), trained)
    assert not torch.equal(trained, old)
    assert not torch.equal(old, reference)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_reach_the_trained_policy_only(tuned, start, checkpointed):
    """Also when the others are asked between the forward and the backward pass."""
    z, condition = start
    if checkpointed:
        tuned.checkpoint_gradients()
    z = z.clone().requires_grad_()
    alone = torch.autograd.grad(tuned.velocity(z, 0.5, condition).sum(), list(weights(tuned, "default").values()))
    loss = tuned.velocity(z, 0.5, condition).sum()
    for policy in ("old", "reference"):
        with tuned.policy(policy):
            v = tuned.velocity(z, 0.5, condition)
            z.grad = None
            v.sum().backward(inputs=[z])
            assert z.grad.abs().sum() > 0
    loss.backward()
    for p, expected in zip(weights(tuned, "default").values(), alone, strict=True):
        torch.testing.assert_close(p.grad, expected)
    for name, p in tuned.transformer.named_parameters():
        assert (p.grad is None) == (".default." not in name), name


def test_the_old_policys_state_survives_a_checkpoint(tuned, pipeline_folder, tmp_path, start):
    state = tuned.old_state()
    tuned.save_adapter(tmp_path)
    tuned.update_old(0.0)
    assert any(not torch.equal(t, p) for t, p in zip(state.values(), weights(tuned, "old").values(), strict=True))
    again = Sd3Generator.load(pipeline_folder)
    again.load_adapter(tmp_path, trainable=True)
    again.add_old()
    again.load_old_state(state)
    assert {n: t.tolist() for n, t in again.old_state().items()} == {n: t.tolist() for n, t in state.items()}
    assert not any("default" in n or ".old." in n for n in state)
    with pytest.raises(ConfigError, match="made for another generator or another LoRA rank"):
        again.load_old_state({n: t[:1] for n, t in state.items()})


def test_the_reference_is_the_model_without_an_adapter_also_when_training_began_from_one(
    tuned, pipeline_folder, tmp_path, start
):
    z, condition = start
    tuned.save_adapter(tmp_path)
    base = Sd3Generator.load(pipeline_folder)
    again = Sd3Generator.load(pipeline_folder)
    again.load_adapter(tmp_path, trainable=True)
    again.add_old()
    disturb(again, 5)
    with again.reference():
        found = sample_latents(again, condition, z, 3)
    assert torch.equal(found, sample_latents(base, condition, z, 3))
    with again.policy("old"):
        old = sample_latents(again, condition, z, 3)
    torch.testing.assert_close(old, sample_latents(tuned, condition, z, 3))


def test_a_saved_adapter_is_the_trained_one(tuned, pipeline_folder, tmp_path, start):
    with tuned.policy("old"):
        tuned.save_adapter(tmp_path)
    again = Sd3Generator.load(pipeline_folder)
    again.load_adapter(tmp_path)
    z, condition = start
    torch.testing.assert_close(again.velocity(z, 0.4, condition), tuned.velocity(z, 0.4, condition))


def test_an_adapter_computes_w_plus_its_scaled_product(tuned):
    layer = tuned.transformer.transformer_blocks[0].attn.to_q
    x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0))
    for policy, adapter in (("trained", "default"), ("old", "old")):
        update = 16 / 4 * layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
        expected = linear(x, layer.base_layer.weight + update, layer.base_layer.bias)
        with tuned.policy(policy):
            torch.testing.assert_close(layer(x), expected)


def test_what_is_missing_is_one_clear_line(generator):
    with pytest.raises(ConfigError, match="no reference policy: the generator has no adapter; call add_lora first"):
        generator.policy("reference").__enter__()
    with pytest.raises(ConfigError, match="call add_lora first"):
        generator.add_old()
    generator.add_lora(2, 2.0)
    with pytest.raises(ConfigError, match="no old policy: call add_old first"):
        generator.update_old(0.5)
    with pytest.raises(ConfigError, match="no old policy: call add_old first"), generator.policy("old"):
        pass
    generator.add_old()
    with pytest.raises(ConfigError, match="has an old policy already"):
        generator.add_old()
