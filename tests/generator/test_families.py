"""FLUX.1, Qwen-Image and Z-Image draw what their own pipelines draw, and can be trained."""

import shutil

import pytest
import tiny_pipelines
import torch
from diffusers import DiffusionPipeline, FluxImg2ImgPipeline, QwenImageImg2ImgPipeline, ZImageImg2ImgPipeline
from small_runs import Redness
from tiny_pipelines import SIDE

from rewarddance.core.errors import ConfigError
from rewarddance.core.protocols import Generator, Tunable
from rewarddance.generator.base import pack, unpack
from rewarddance.generator.families import load_generator_folder
from rewarddance.generator.trace import sample_latents, trace
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.load import load_generator, load_generator_of

FAMILIES = ["flux", "qwen-image", "z-image"]
PROMPTS = ["a red circle", "striped drawing of two blue squares on black, and a green star", "a drawing"]
LENGTH = 96


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            made[family] = tiny_pipelines.save(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.fixture
def load(folders):
    def make(family, guidance=1.0, **changes):
        return load_generator(
            folders(family), guidance=guidance, resolution=SIDE, max_sequence_length=LENGTH, **changes
        )

    return make


def noise_of(generator, n=3):
    return generator.noise(n, torch.Generator().manual_seed(3))


def call(pipeline, family, guidance, noise, prompts=PROMPTS, num_steps=4):
    """What the pipeline draws itself."""
    arguments = {
        "flux": {"guidance_scale": guidance},
        "flux-schnell": {"guidance_scale": 0.0},
        "qwen-image": {"true_cfg_scale": guidance},
        "z-image": {"guidance_scale": guidance - 1},
    }[family]
    if family == "qwen-image" and guidance > 1:
        arguments["negative_prompt"] = [" "] * len(prompts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        list(prompts), num_inference_steps=num_steps, height=SIDE, width=SIDE, output_type="pt",
        latents=noise if family == "z-image" else pack(noise), max_sequence_length=LENGTH, **arguments,
    ).images  # fmt: skip


def disturb(generator, seed=0, std=0.2):
    """Give the trained adapter something to do."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in generator.transformer.named_parameters():
            if "lora_" in name and ".default." in name:
                p.add_(torch.randn(p.shape, generator=rng), alpha=std)


@pytest.mark.parametrize(
    ("family", "guidance"), [*((f, g) for f in FAMILIES for g in (1.0, 3.5)), ("flux-schnell", 1.0)]
)
def test_sampling_equals_the_pipelines_own_call(load, family, guidance):
    generator = load(family, guidance)
    assert isinstance(generator, Tunable)
    assert isinstance(generator, Generator)
    noise = noise_of(generator)
    ours = torch.cat([m.frames for m in generator.decode(draw(generator, noise))])
    theirs = call(generator.pipeline, family, guidance, noise)
    assert ours.shape == (len(PROMPTS), 3, SIDE, SIDE)
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def draw(generator, noise, prompts=PROMPTS, num_steps=4):
    return sample_latents(generator, generator.condition(prompts), noise, num_steps)


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_does_something(load, family):
    off, on = (load(family, g) for g in (1.0, 3.5))
    z = noise_of(off)
    gap = off.velocity(z, 0.6, off.condition(PROMPTS)) - on.velocity(z, 0.6, on.condition(PROMPTS))
    assert gap.abs().max() > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_gets_in_company_what_it_gets_alone(load, family, guidance):
    """The prompts have different lengths, so they are padded."""
    generator = load(family, guidance)
    noise = noise_of(generator)
    together = draw(generator, noise)
    alone = torch.cat([draw(generator, noise[i : i + 1], PROMPTS[i : i + 1]) for i in range(len(PROMPTS))])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    pictures = [torch.cat([m.frames for m in generator.sample(PROMPTS, num_steps=2, batch=b)]) for b in (2, 8)]
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_a_step_agrees_with_finite_differences(load, family):
    """Of the decoded prediction of one step, with guidance, along a random direction of all adapter weights."""
    generator = load(family, 2.0)
    torch.manual_seed(0)
    generator.add_lora(2, 4.0)
    disturb(generator)
    weights = [p for p in generator.transformer.parameters() if p.requires_grad]
    rng = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=rng) for p in weights]
    z, condition = noise_of(generator, 1), generator.condition(PROMPTS[:1])
    probe = torch.randn(1, 3, SIDE, SIDE, generator=rng).double()

    def value():
        (step,) = trace(generator, condition, z, torch.tensor([0.7, 0.0]))
        return (generator.decode_tensor(step.clean).double() * probe).sum()

    value().backward()
    plain = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in weights]
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
            p.grad = torch.zeros_like(p)
    generator.checkpoint_gradients()
    value().backward()
    for p, expected in zip(weights, plain, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in generator.transformer.parameters() if not p.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_itself_loads_a_saved_adapter(load, folders, family, tmp_path):
    generator = load(family, 2.0)
    noise = noise_of(generator)
    plain = generator.decode_tensor(draw(generator, noise))
    generator.add_lora(2, 6.0)
    disturb(generator)
    generator.save_adapter(tmp_path)
    tuned = generator.decode_tensor(draw(generator, noise))
    assert (tuned - plain).abs().max() > 1e-3
    pipeline = DiffusionPipeline.from_pretrained(folders(family))
    pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(call(pipeline, family, 2.0, noise), tuned, rtol=0, atol=1e-5)
    again = load(family, 2.0, adapter=tmp_path)
    assert torch.equal(again.decode_tensor(draw(again, noise)), tuned)


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_and_old_are_policies_of_their_own(load, family):
    generator = load(family)
    z, condition = noise_of(generator), generator.condition(PROMPTS)
    before = generator.velocity(z, 0.5, condition)
    generator.add_lora(2, 4.0)
    disturb(generator, 1)
    middle = generator.velocity(z, 0.5, condition)
    generator.add_old()
    disturb(generator, 2)
    with generator.reference():
        assert torch.equal(generator.velocity(z, 0.5, condition), before)
    with generator.policy("old"):
        assert torch.equal(generator.velocity(z, 0.5, condition), middle)
    trained = generator.velocity(z, 0.5, condition)
    assert min((trained - middle).abs().max(), (middle - before).abs().max()) > 1e-3
    named = {n for n, p in generator.transformer.named_parameters() if p.requires_grad}
    assert named == {n for n, _ in generator.transformer.named_parameters() if ".default." in n}


@pytest.mark.parametrize(
    ("family", "kind"),
    [("flux", FluxImg2ImgPipeline), ("qwen-image", QwenImageImg2ImgPipeline), ("z-image", ZImageImg2ImgPipeline)],
)
def test_encoding_is_that_of_the_image_to_image_pipeline(load, family, kind):
    """These autoencoders have posteriors without spread, so a sample is the mode."""
    generator = load(family)
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    pipeline = kind(**generator.pipeline.components)
    pictures = pixels * 2 - 1
    with torch.no_grad():
        ours = generator.encode(pixels)
        if family == "z-image":
            theirs = img2img_latents(pipeline, pictures)
        else:
            theirs = pipeline._encode_vae_image(
                pictures[:, :, None] if family == "qwen-image" else pictures, torch.Generator().manual_seed(0)
            )
    assert ours.shape == (2, generator.latent_channels, generator.latent_side, generator.latent_side)
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=0, atol=1e-5)


def img2img_latents(pipeline, pictures):
    """At time 0 the noisy latents of Z-Image's pipeline are the picture's own."""
    pipeline.scheduler.set_timesteps(sigmas=[0.0])
    b, _, side, _ = pictures.shape
    return pipeline.prepare_latents(
        pictures, torch.zeros(1), b, tiny_pipelines.CHANNELS, side, side, torch.float32, "cpu",
        torch.Generator().manual_seed(0),
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_weights_draw_nearly_the_same(load, family):
    full, half = load(family, 2.0), load(family, 2.0, dtype="bf16")
    half.precision = "bf16"
    z = noise_of(full)
    expected = full.velocity(z, 0.5, full.condition(PROMPTS))
    rounded = half.velocity(z, 0.5, half.condition(PROMPTS))
    assert rounded.dtype == torch.float32
    assert (rounded - expected).norm() < 0.05 * expected.norm()
    assert next(half.vae.parameters()).dtype == torch.float32
    half.add_lora(2, 2.0)
    half.velocity(z, 0.5, half.condition(PROMPTS)).sum().backward()
    assert {p.dtype for p in half.transformer.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_velocity_takes_a_time_for_every_picture(load, family):
    generator = load(family, 2.0)
    z, condition = noise_of(generator), generator.condition(PROMPTS)
    times = [0.9, 0.5, 0.2]
    together = generator.velocity(z, torch.tensor(times), condition)
    for i, t in enumerate(times):
        torch.testing.assert_close(together[i], generator.velocity(z, t, condition)[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_prompts_are_counted(load, family):
    assert load(family).num_cut([PROMPTS[0], "a red circle on white " * 60]) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_resolution_is_the_side_of_its_pictures(folders, family):
    usual = load_generator_folder(folders(family), 1.0, torch.float32, 128 if family == "z-image" else None)
    assert usual.side == (128 if family == "z-image" else 256)
    with pytest.raises(ConfigError, match="resolution 30: this generator draws multiples of 4"):
        load_generator(folders(family), resolution=30)
    if family == "z-image":
        with pytest.raises(ConfigError, match="multiples of 4 up to 128 pixels"):
            load_generator(folders(family))


@pytest.mark.slow
def test_reward_feedback_trains_it(folders, quick_align, tmp_path):
    """Qwen-Image, whose last layer has adapters that no gradient reaches (its text stream ends there)."""
    config = quick_align("none").model_copy(update={"generator": str(folders("qwen-image")), "resolution": 48})
    generator = load_generator_of(config)
    adapter = align_generator(config, generator, Redness(), tmp_path / "run")
    again = load_generator_of(config, adapter)
    z, condition = noise_of(again), again.condition(PROMPTS)
    with again.reference():
        before = again.velocity(z, 0.5, condition)
    assert not torch.equal(again.velocity(z, 0.5, condition), before)


def test_a_model_without_guidance_takes_none(load):
    with pytest.raises(ConfigError, match="has no guidance embedding"):
        load("flux-schnell", 3.5)


def test_other_schedulers_are_refused(load):
    generator = load("z-image")
    generator.pipeline.scheduler.register_to_config(stochastic_sampling=True)
    with pytest.raises(ConfigError, match="only FlowMatchEulerDiscreteScheduler without noise"):
        generator.times(4)


def test_packing_is_undone():
    z = torch.arange(2 * 4 * 6 * 6).reshape(2, 4, 6, 6)
    assert torch.equal(unpack(pack(z)), z)
    assert pack(z)[0, 0].tolist() == z[0, :, :2, :2].flatten().tolist()


def test_pickled_weights_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders("flux"), tmp_path / "flux")
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_generator(folder)
