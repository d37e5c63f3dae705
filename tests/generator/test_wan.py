"""Wan text-to-video and image-to-video draw what their pipelines draw, and can be trained."""

import json

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.media import Media
from rewarddance.core.protocols import Generator, Tunable
from rewarddance.core.task import Prompt
from rewarddance.generator.families import load_generator_folder
from rewarddance.generator.trace import sample_latents, trace
from rewarddance.generator.wan import CLIP_FILE, ClipShape, WanGenerator, WanImageToVideoGenerator, cleaned
from rewarddance.world.build.tiny_video import CALL, new_video_transformer, tiny_video_pipeline
from rewarddance.world.build.video_sampling import SHAPE

PROMPTS = [
    "flat clip of a red circle slowly moving left on white",
    "a blue square growing, flat style, black background",
]


def shuffled(module, seed=0):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=rng) + (p.ndim < 2))
    return module


def pipeline_of(kind="t2v"):
    """A tiny pipeline of every kind: one transformer, two experts, or a first frame at time 0."""
    from_picture = kind.startswith("i2v") or kind == "ti2v"
    pipeline = tiny_video_pipeline(from_picture=from_picture, num_layers=1)
    pipeline.vae.register_to_config(
        latents_mean=[0.1 * i for i in range(8)], latents_std=[1 + 0.1 * i for i in range(8)]
    )
    parts = dict(pipeline.components)
    if kind == "ti2v":
        parts["transformer"] = new_video_transformer(num_layers=1)
    shuffled(parts["transformer"])
    if kind.endswith("experts"):
        parts["transformer_2"] = shuffled(new_video_transformer(from_picture, num_layers=1), 1)
        parts["boundary_ratio"] = 0.875
    if kind.startswith("ti2v") or kind == "t2v-tokens":
        parts["expand_timesteps"] = True
    return type(pipeline)(**parts)


def generator_of(kind, guidance=1.0, shape=SHAPE):
    pipeline = pipeline_of(kind)
    cls = WanImageToVideoGenerator if isinstance(pipeline, WanImageToVideoPipeline) else WanGenerator
    for part in ("transformer", "text_encoder", "vae"):
        pipeline.components[part].requires_grad_(False)
    return cls(pipeline, guidance, shape)


def pictures(n, side=48):
    rng = np.random.default_rng(0)
    return [Media.from_numpy(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(n)]


def with_pictures(media):
    return [Prompt(text, condition=picture) for text, picture in zip(PROMPTS, media, strict=False)]


def call(generator, noise, prompts, guidance, num_steps, picture=None):
    """What the pipeline draws itself. Its image-to-video cleans prompts with ftfy, so it gets them embedded."""
    pipeline = generator.pipeline
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": list(prompts)}
    if picture is not None:
        embeds, empty = (generator._embed(p) for p in (list(prompts), [""] * len(prompts)))
        given = {"prompt_embeds": embeds, "negative_prompt_embeds": empty, "image": picture.to_pil()}
    return pipeline(
        num_inference_steps=num_steps, latents=noise, guidance_scale=guidance, output_type="pt", **given, **CALL
    ).frames


@torch.no_grad()
def draw(generator, noise, condition, num_steps):
    return generator.decode_tensor(sample_latents(generator, condition, noise, num_steps))


def noise_of(generator, n=2):
    return generator.noise(n, torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("kind", "guidance"), [("t2v", 1.0), ("t2v", 3.0), ("t2v-experts", 3.0), ("t2v-tokens", 1.0)])
def test_text_to_video_equals_the_pipelines_own_call(kind, guidance):
    generator = generator_of(kind, guidance)
    assert isinstance(generator, Tunable)
    assert isinstance(generator, Generator)
    noise = noise_of(generator)
    assert noise.shape == (2, 8, 5, 12, 12)
    ours = draw(generator, noise, generator.condition(PROMPTS), 3)
    theirs = call(generator, noise, PROMPTS, guidance, 3)
    assert ours.shape == (2, 9, 3, 48, 48)
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    media = generator.decode(noise[:1])[0]
    assert (media.num_frames, media.fps) == (9, 8.0)


@pytest.mark.parametrize(("kind", "guidance"), [("i2v", 1.0), ("i2v", 3.0), ("i2v-experts", 1.0), ("ti2v", 3.0)])
def test_image_to_video_equals_the_pipelines_own_call(kind, guidance):
    generator = generator_of(kind, guidance)
    noise, (picture,) = noise_of(generator, 1), pictures(1)
    ours = draw(generator, noise, generator.condition([Prompt(PROMPTS[0], condition=picture)]), 3)
    theirs = call(generator, noise, PROMPTS[:1], guidance, 3, picture)
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_a_first_frame_at_time_zero_is_predicted_as_it_is():
    generator = generator_of("ti2v")
    condition = generator.condition(with_pictures(pictures(1)))
    (step,) = trace(generator, condition, noise_of(generator, 1), torch.tensor([0.7, 0.0]))
    torch.testing.assert_close(step.clean[:, :, :1], condition.picture, rtol=0, atol=1e-5)


def test_image_embeddings_reach_the_transformer_as_in_the_pipeline():
    pipeline = pipeline_of("i2v")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    encoder = CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **sizes)).eval()
    config = dict(pipeline.transformer.config) | {"image_dim": 32, "added_kv_proj_dim": 192}
    del config["_use_default_values"]  # it would set them to their defaults
    parts = dict(pipeline.components) | {
        "transformer": shuffled(type(pipeline.transformer).from_config(config)).eval(),
        "image_encoder": encoder,
        "image_processor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    }
    pipeline = WanImageToVideoPipeline(**parts)
    with pytest.raises(ConfigError, match="needs 512"):
        WanImageToVideoGenerator(pipeline, 1.0, SHAPE)
    generator = WanImageToVideoGenerator(pipeline, 2.0, ClipShape(9, 8.0, 48, 512))
    noise, (picture,) = noise_of(generator, 1), pictures(1)
    ours = draw(generator, noise, generator.condition([Prompt(PROMPTS[0], condition=picture)]), 2)
    theirs = call(generator, noise, PROMPTS[:1], 2.0, 2, picture)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_the_gradient_of_a_step_agrees_with_finite_differences(kind):
    """Of the decoded prediction of one step, with guidance, along a random direction of all adapter weights."""
    generator = generator_of(kind, 2.0)
    torch.manual_seed(0)
    generator.add_lora(2, 4.0)
    weights = [p for p in generator.transformer.parameters() if p.requires_grad]
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in weights:
            p.add_(0.2 * torch.randn(p.shape, generator=rng))
    direction = [torch.randn(p.shape, generator=rng) for p in weights]
    asked = with_pictures(pictures(1)) if kind == "i2v" else PROMPTS[:1]
    with torch.no_grad():  # so that no pixel is clamped, where the slope jumps
        for p in generator.vae.decoder.conv_out.parameters():
            p.mul_(0.3)
    z, condition = 0.3 * noise_of(generator, 1), generator.condition(asked)
    probe = torch.randn(1, 9, 3, 48, 48, generator=rng).double()

    def value():
        (step,) = trace(generator, condition, z, torch.tensor([0.2, 0.0]))
        pixels = generator.decode_tensor(step.clean)
        assert 0 < pixels.min() < pixels.max() < 1
        return (pixels.double() * probe).sum()

    value().backward()
    plain = [p.grad.clone() for p in weights]
    slope = sum((g.double() * d).sum() for g, d in zip(plain, direction, strict=True))
    values, size = [], 1e-3
    for move in (size, -2 * size):
        with torch.no_grad():
            for p, d in zip(weights, direction, strict=True):
                p.add_(d, alpha=move)
            values.append(value())
    assert slope.abs() > 1e-3
    torch.testing.assert_close((values[0] - values[1]) / (2 * size), slope, rtol=5e-3, atol=0)
    with torch.no_grad():
        for p, d in zip(weights, direction, strict=True):
            p.add_(d, alpha=size)
            p.grad = None
    generator.checkpoint_gradients()
    value().backward()
    for p, expected in zip(weights, plain, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-3, atol=1e-4)


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


def test_encoding_is_the_image_to_video_pipelines():
    generator = generator_of("t2v")
    clips = torch.rand(2, 9, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mode = generator.vae.encode(clips.transpose(1, 2) * 2 - 1).latent_dist.mode()
    mean, std = (torch.tensor(generator.vae.config[k]).view(-1, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    torch.testing.assert_close(generator.encode(clips), (mode - mean) / std, rtol=0, atol=1e-5)


def test_each_row_takes_the_expert_of_its_time():
    generator = generator_of("t2v-experts", 2.0)
    z, condition = noise_of(generator), generator.condition(PROMPTS)
    together = generator.velocity(z, torch.tensor([0.9, 0.5]), condition)
    for i, t in enumerate((0.9, 0.5)):
        torch.testing.assert_close(together[i], generator.velocity(z, t, condition)[i], rtol=0, atol=1e-4)


def adapted(generator, std=0.3, seed=2):
    """With an adapter that does something in every transformer."""
    generator.add_lora(2, 6.0)
    rng = torch.Generator().manual_seed(seed)
    for module in generator.trainable().values():
        for name, p in module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=std, generator=rng)
    return generator


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


def test_times_are_the_schedulers_own():
    generator = generator_of("t2v")
    generator.pipeline.scheduler.set_timesteps(4)
    assert torch.equal(generator.times(4), generator.pipeline.scheduler.sigmas)
    generator.pipeline.scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    times = generator.times(4)
    assert times.shape == (5,)
    assert times[0] > 0.99
    assert times[-1] == 0
    assert (times.diff() < 0).all()


def test_bad_input_is_one_line(tmp_path):
    generator = generator_of("i2v")
    with pytest.raises(InputError, match="image-to-video needs the picture to begin with"):
        generator.condition(PROMPTS)
    with pytest.raises(InputError, match="has a picture to begin with, but this generator draws from text alone"):
        generator_of("t2v").condition(with_pictures(pictures(1)))
    with pytest.raises(InputError, match="32x32 pixels; this generator needs 48x48"):
        generator.condition(with_pictures(pictures(1, 32)))
    with pytest.raises(ConfigError, match=r"8 frames: this generator draws 1 \+ a multiple of 2"):
        generator_of("t2v", shape=ClipShape(8, 8.0, 48, 24))
    with pytest.raises(ConfigError, match="multiples of 8"):
        generator_of("t2v", shape=ClipShape(9, 8.0, 44, 24))
    (tmp_path / CLIP_FILE).write_text('{"frames": 9}')
    with pytest.raises(ConfigError, match="not the shape of a clip"):
        ClipShape.of(tmp_path)
    assert generator.num_cut(["a red circle", "a red circle " * 30]) == 1


def test_prompts_are_cleaned_as_by_the_pipelines():
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    for text in ("  a red\n\tcircle ", "a &amp;lt; b", "plain"):
        assert cleaned(text) == prompt_clean(text)
