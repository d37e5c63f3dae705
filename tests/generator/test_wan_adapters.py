"""LoRA adapters of Wan: plain diffusers draws the same with them, and both experts learn."""

import json

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from tiny_wan import CALL
from wan_pipelines import (
    PROMPTS,
    adapted,
    call,
    draw,
    generator_of,
    noise_of,
    pictures,
    pipeline_of,
)

from rewarddance.core.errors import ConfigError
from rewarddance.core.task import Prompt
from rewarddance.generator.families import load_generator_folder
from rewarddance.generator.wan import CLIP_FILE, ClipShape
from rewarddance.world.build.video_sampling import SHAPE


def test_diffusers_itself_loads_a_saved_adapter_and_so_do_we(tmp_path):
    pipeline_of("t2v").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / CLIP_FILE).write_text('{"num_frames": 5, "fps": 4.0, "side": 48, "max_sequence_length": 24}')
    generator = load_generator_folder(tmp_path / "model", 2.0, torch.float32)
    assert generator.shape == ClipShape(5, 4.0, 48, 24)
    noise = noise_of(generator)
    plain = draw(generator, noise, generator.condition(PROMPTS), 2)
    generator.add_lora(2, 6.0)
    torch.manual_seed(2)
    for name, p in generator.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    tuned = draw(generator, noise, generator.condition(PROMPTS), 2)
    assert (tuned - plain).abs().max() > 1e-3
    with generator.reference():
        assert torch.equal(draw(generator, noise, generator.condition(PROMPTS), 2), plain)
    generator.save_adapter(tmp_path / "adapter")
    again = load_generator_folder(tmp_path / "model", 2.0, torch.float32)
    again.load_adapter(tmp_path / "adapter")
    assert torch.equal(draw(again, noise, again.condition(PROMPTS), 2), tuned)
    pipeline = WanPipeline.from_pretrained(tmp_path / "model")
    pipeline.load_lora_weights(tmp_path / "adapter", weight_name="pytorch_lora_weights.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS, num_inference_steps=2, latents=noise, guidance_scale=2.0, output_type="pt", **CALL | {"num_frames": 5}
    ).frames
    torch.testing.assert_close(tuned, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["i2v", "i2v-experts"])
def test_adapters_of_image_to_video_draw_the_same_in_plain_diffusers(kind, tmp_path):
    pipeline_of(kind).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / CLIP_FILE).write_text(json.dumps(vars(SHAPE)))
    generator = load_generator_folder(tmp_path / "model", 2.0, torch.float32)
    noise, (picture,) = noise_of(generator, 1), pictures(1)
    condition = generator.condition([Prompt(PROMPTS[0], condition=picture)])
    plain = draw(generator, noise, condition, 3)
    tuned = draw(adapted(generator), noise, condition, 3)
    assert float((tuned - plain).abs().max()) > 1e-3
    folder = generator.save_adapter(tmp_path / "adapter")
    pipeline = WanImageToVideoPipeline.from_pretrained(tmp_path / "model")
    for part in ("", "_2") if kind == "i2v-experts" else ("",):
        name = f"pytorch_lora_weights{part}.safetensors"
        pipeline.load_lora_weights(folder, weight_name=name, load_into_transformer_2=part == "_2")
    theirs = call(generator, noise, PROMPTS[:1], 2.0, 3, picture, pipeline)
    torch.testing.assert_close(tuned, theirs, rtol=0, atol=5e-5)


@pytest.fixture
def experts(tmp_path):
    pipeline_of("t2v-experts").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / CLIP_FILE).write_text(json.dumps(vars(SHAPE)))
    return load_generator_folder(tmp_path / "model", 1.0, torch.float32)


def test_an_adapter_of_both_experts_draws_the_same_in_plain_diffusers(experts, tmp_path):
    noise, condition = noise_of(experts), experts.condition(PROMPTS)
    plain = draw(experts, noise, condition, 3)
    tuned = draw(adapted(experts), noise, condition, 3)
    assert list(experts.trainable()) == ["transformer", "transformer_2"]
    with experts.reference():
        assert torch.equal(draw(experts, noise, condition, 3), plain)
    folder = experts.save_adapter(tmp_path / "adapter")
    assert sorted(f.name for f in folder.glob("adapter*")) == [
        "adapter.json", "adapter.safetensors", "adapter_2.safetensors",
    ]  # fmt: skip
    again = load_generator_folder(tmp_path / "model", 1.0, torch.float32)
    again.load_adapter(folder)
    assert torch.equal(draw(again, noise, again.condition(PROMPTS), 3), tuned)
    assert not any(p.requires_grad for m in again.trainable().values() for p in m.parameters())
    drawn = {}
    for parts in (("",), ("_2",), ("", "_2")):
        pipeline = WanPipeline.from_pretrained(tmp_path / "model")
        pipeline.set_progress_bar_config(disable=True)
        for part in parts:
            name = f"pytorch_lora_weights{part}.safetensors"
            pipeline.load_lora_weights(folder, weight_name=name, load_into_transformer_2=part == "_2")
        drawn[parts] = pipeline(
            PROMPTS, num_inference_steps=3, latents=noise, guidance_scale=1.0, output_type="pt", **CALL
        ).frames
    torch.testing.assert_close(drawn["", "_2"], tuned, rtol=0, atol=2e-5)
    assert all(float((drawn[one] - tuned).abs().max()) > 1e-3 for one in (("",), ("_2",)))


def test_each_experts_adapter_learns_from_the_times_of_its_expert(experts):
    adapted(experts)
    for t, learns in ((0.9, "transformer"), (0.5, "transformer_2")):
        experts.velocity(noise_of(experts), t, experts.condition(PROMPTS)).square().mean().backward()
        for name, module in experts.trainable().items():
            trained = [p for p in module.parameters() if p.requires_grad]
            assert len(trained) == 2 * 8  # the layers of `ATTENTION`
            gradients = [p.grad for p in trained]
            assert all(g is not None and g.abs().sum() > 0 for g in gradients) == (name == learns)
            assert any(g is not None for g in gradients) == (name == learns)
            module.zero_grad(set_to_none=True)


def test_the_old_policy_of_both_experts_follows_and_comes_back(experts):
    adapted(experts)
    condition, noise = experts.condition(PROMPTS), noise_of(experts)
    experts.add_old()
    first = draw(experts, noise, condition, 3)
    for module in experts.trainable().values():
        for n, p in module.named_parameters():
            if ".lora_B.default." in n:
                p.data.mul_(2)
    later = draw(experts, noise, condition, 3)
    with experts.policy("old"):
        assert torch.equal(draw(experts, noise, condition, 3), first)
    state = experts.old_state()
    assert {n.split(".")[0] for n in state} == {"1", "2"}
    experts.update_old(0.0)
    with experts.policy("old"):
        torch.testing.assert_close(draw(experts, noise, condition, 3), later, rtol=0, atol=1e-6)
    experts.load_old_state(state)
    with experts.policy("old"):
        assert torch.equal(draw(experts, noise, condition, 3), first)
    with pytest.raises(ConfigError, match="another generator or another LoRA rank"):
        experts.load_old_state({n: t for n, t in state.items() if n.startswith("1.")})


def test_adapters_of_one_and_of_two_transformers_are_not_mixed_up(experts, tmp_path):
    two = adapted(experts).save_adapter(tmp_path / "two")
    one = adapted(generator_of("t2v")).save_adapter(tmp_path / "one")
    with pytest.raises(ConfigError, match="adapter of 2 transformers; this generator has 1"):
        generator_of("t2v").load_adapter(two)
    fresh = load_generator_folder(tmp_path / "model", 1.0, torch.float32)
    with pytest.raises(ConfigError, match="adapter of 1 transformers; this generator has 2"):
        fresh.load_adapter(one)
    (two / "adapter_2.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"adapter_2\.safetensors: is missing"):
        fresh.load_adapter(two)
