"""Wan text-to-video and image-to-video draw what their pipelines draw, and can be trained."""

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from wan_pipelines import PROMPTS, call, draw, generator_of, noise_of, pictures, pipeline_of, with_pictures

from rewarddance.core.errors import ConfigError, InputError
from rewarddance.core.protocols import Generator, Tunable
from rewarddance.core.task import Prompt
from rewarddance.generator.trace import trace
from rewarddance.generator.wan import CLIP_FILE, ClipShape, WanImageToVideoGenerator, cleaned
from rewarddance.world.build.video_sampling import SHAPE


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
    with pytest.raises(ConfigError, match="needs 512"):
        WanImageToVideoGenerator(pipeline_of("i2v-clip"), 1.0, SHAPE)
    generator = generator_of("i2v-clip", 2.0)
    noise, (picture,) = noise_of(generator, 1), pictures(1)
    ours = draw(generator, noise, generator.condition([Prompt(PROMPTS[0], condition=picture)]), 2)
    theirs = call(generator, noise, PROMPTS[:1], 2.0, 2, picture)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("kind", "time"),
    [("t2v", 0.2), ("i2v", 0.2), ("t2v-experts", 0.9), ("i2v-experts", 0.2), ("t2v-tokens", 0.2), ("ti2v", 0.2),
     ("i2v-clip", 0.2)],
)  # fmt: skip
def test_the_gradient_of_a_step_agrees_with_finite_differences(kind, time):
    """The gradient of one step's decoded prediction, with guidance, along a random direction of all adapter weights.

    The times of the two experts are above and below the boundary.
    """
    generator = generator_of(kind, 2.0)
    torch.manual_seed(0)
    generator.add_lora(2, 4.0)
    weights = [p for module in generator.trainable().values() for p in module.parameters() if p.requires_grad]
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in weights:
            p.add_(0.2 * torch.randn(p.shape, generator=rng))
    direction = [torch.randn(p.shape, generator=rng) for p in weights]
    asked = PROMPTS[:1] if kind.startswith("t2v") else with_pictures(pictures(1))
    with torch.no_grad():  # so that no pixel is clamped, where the slope jumps
        for p in generator.vae.decoder.conv_out.parameters():
            p.mul_(0.3)
    z, condition = 0.3 * noise_of(generator, 1), generator.condition(asked)
    probe = torch.randn(1, 9, 3, 48, 48, generator=rng).double()

    def value():
        (step,) = trace(generator, condition, z, torch.tensor([time, 0.0]))
        pixels = generator.decode_tensor(step.clean)
        assert 0 < pixels.min() < pixels.max() < 1
        return (pixels.double() * probe).sum()

    value().backward()
    plain = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in weights]
    assert (len(list(generator.trainable())) == 2) == any(not g.any() for g in plain)
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
        again = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-4)


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
