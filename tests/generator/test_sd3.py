import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from rewarddance.core.errors import ConfigError
from rewarddance.core.protocols import Generator, Tunable
from rewarddance.generator import flow
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.generator.trace import rollout, sample_latents
from rewarddance.jobs.load import load_generator

PROMPTS = ["flat drawing of a red circle on white", "striped drawing of two blue squares on black"]


def test_it_is_a_generator(generator):
    assert isinstance(generator, Generator)


@pytest.mark.parametrize(("guidance", "shift"), [(1.0, 1.0), (3.0, 1.0), (1.0, 3.0)])
def test_sampling_equals_the_pipelines_call_with_even_times(pipeline_folder, guidance, shift):
    """The pipeline's own scheduler shifts them. Its default times are other ones (see `Sd3Generator.times`)."""
    generator = Sd3Generator.load(pipeline_folder, guidance)
    generator.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    noise = generator.noise(2, torch.Generator().manual_seed(3))
    ours = generator.decode_tensor(sample_latents(generator, generator.condition(PROMPTS), noise, 5))
    pipeline: StableDiffusion3Pipeline = generator.pipeline
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS, num_inference_steps=5, guidance_scale=guidance, latents=noise, max_sequence_length=0, output_type="pt",
        sigmas=flow.times(5)[:-1].tolist(),
    ).images  # fmt: skip
    assert torch.allclose(ours, theirs, atol=2e-4)


def test_a_checkpoint_that_knew_t5_is_conditioned_as_diffusers_does_without_it(pipeline_folder, tmp_path):
    """Zeros stand where T5's tokens stood; they take part in attention."""
    torch.manual_seed(0)
    pipeline = Sd3Generator.load(pipeline_folder).pipeline
    config = dict(pipeline.transformer.config) | {"joint_attention_dim": 256}
    pipeline.transformer = type(pipeline.transformer).from_config(config)
    torch.nn.init.normal_(pipeline.transformer.proj_out.weight, std=0.05)
    pipeline.save_pretrained(tmp_path / "wide")
    generator = Sd3Generator.load(tmp_path / "wide", 3.0)
    noise = generator.noise(2, torch.Generator().manual_seed(3))
    ours = generator.decode_tensor(sample_latents(generator, generator.condition(PROMPTS), noise, 2))
    pipeline = generator.pipeline
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS, num_inference_steps=2, guidance_scale=3.0, latents=noise, output_type="pt",
        sigmas=flow.times(2)[:-1].tolist(),
    ).images  # fmt: skip
    assert torch.allclose(ours, theirs, atol=2e-4)


def test_samples_depend_on_seed_and_prompts_not_on_the_batch(generator):
    prompts = [*PROMPTS, *PROMPTS]
    whole, parts = (torch.cat([m.frames for m in generator.sample(prompts, num_steps=3, batch=b)]) for b in (8, 3))
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=0)
    assert not torch.allclose(whole, torch.cat([m.frames for m in generator.sample(prompts, num_steps=3, seed=1)]))


def test_replayed_log_probabilities_equal_recorded_ones(generator):
    condition = generator.condition(PROMPTS)
    rng = torch.Generator().manual_seed(0)
    path = rollout(generator, condition, generator.noise(2, rng), 6, noise=0.7, rng=rng)
    assert path.log_probs is not None
    assert path.log_probs.shape == (5, 2)
    for i in range(5):
        now, after = path.times[i].item(), path.times[i + 1].item()
        policy = flow.step(path.states[i], generator.velocity(path.states[i], now, condition), now, after, 0.7)
        assert torch.allclose(policy.log_prob(path.states[i + 1]), path.log_probs[i], atol=1e-6)


def test_reference_is_the_model_without_its_adapter(generator):
    z, condition = generator.noise(2, torch.Generator().manual_seed(0)), generator.condition(PROMPTS)
    before = generator.velocity(z, 0.5, condition)
    generator.add_lora(4, 8.0)
    for name, p in generator.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    with generator.reference():
        frozen = generator.velocity(z, 0.5, condition)
    assert torch.equal(frozen, before)
    assert not torch.allclose(generator.velocity(z, 0.5, condition), before, atol=1e-3)


def saved_adapter(generator, folder):
    """One that does something."""
    generator.add_lora(4, 16.0)
    for name, p in generator.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    generator.save_adapter(folder)


def test_adapter_survives_the_disk(generator, pipeline_folder, tmp_path):
    saved_adapter(generator, tmp_path)
    again = Sd3Generator.load(pipeline_folder)
    again.load_adapter(tmp_path)
    z = generator.noise(1, torch.Generator().manual_seed(0))
    condition = generator.condition(PROMPTS[:1])
    assert torch.allclose(generator.velocity(z, 0.4, condition), again.velocity(z, 0.4, condition), atol=1e-6)


def test_a_loaded_adapter_stays_frozen_and_one_in_training_trains_on(generator, pipeline_folder, tmp_path):
    saved_adapter(generator, tmp_path)
    trained = {n for n, p in generator.transformer.named_parameters() if p.requires_grad}
    with generator.reference():
        pass
    assert {n for n, p in generator.transformer.named_parameters() if p.requires_grad} == trained
    again = Sd3Generator.load(pipeline_folder)
    again.load_adapter(tmp_path)
    with again.reference():
        pass
    assert not any(p.requires_grad for p in again.transformer.parameters())


def test_an_adapter_that_lacks_layers_is_refused(generator, pipeline_folder, tmp_path):
    saved_adapter(generator, tmp_path)
    state = load_file(tmp_path / "adapter.safetensors")
    save_file({k: v for k, v in state.items() if ".1." not in k}, tmp_path / "adapter.safetensors")
    with pytest.raises(ConfigError, match="made for another generator"):
        Sd3Generator.load(pipeline_folder).load_adapter(tmp_path)


def test_diffusers_itself_loads_the_adapter(generator, pipeline_folder, tmp_path):
    saved_adapter(generator, tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    z = generator.noise(1, torch.Generator().manual_seed(0))
    condition = generator.condition(PROMPTS[:1])
    with torch.no_grad():
        wanted, found = (g.velocity(z, 0.4, condition) for g in (generator, Sd3Generator(pipeline)))
    assert torch.allclose(found, wanted, atol=1e-6)


def test_no_reference_without_adapter_is_one_clear_line(generator):
    with pytest.raises(ConfigError, match="add_lora"), generator.reference():
        pass


def test_decode_passes_gradients(generator):
    z = generator.noise(1, torch.Generator().manual_seed(0)).requires_grad_()
    generator.decode(z)[0].frames.sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_the_autoencoder_decodes_in_fp32_under_autocast(generator):
    """Reward feedback sends its gradient through the decoder."""
    z = generator.noise(1, torch.Generator().manual_seed(1)).requires_grad_()
    expected = generator.decode_tensor(z)
    (gradient,) = torch.autograd.grad(expected.square().sum(), z)
    generator.precision = "bf16"
    with torch.autocast("cpu", torch.bfloat16):
        pixels = generator.decode_tensor(z)
    assert torch.equal(pixels, expected)
    assert torch.equal(torch.autograd.grad(pixels.square().sum(), z)[0], gradient)


def test_folders_of_other_pipelines_are_named(tmp_path):
    with pytest.raises(ConfigError, match="not a pipeline in diffusers layout"):
        load_generator(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "LTXPipeline"}')
    with pytest.raises(ConfigError, match="a LTXPipeline; known are FluxPipeline, QwenImagePipeline, StableDi"):
        load_generator(tmp_path)


def test_the_adapter_keeps_the_protocols(generator):
    assert isinstance(generator, Tunable)
    assert isinstance(generator, Generator)


def test_resolution_is_the_side_of_its_pictures(pipeline_folder):
    """As the pipeline itself draws them at that height and width."""
    small = Sd3Generator.load(pipeline_folder, resolution=32)
    assert (small.side, small.latent_side) == (32, 8)
    noise = small.noise(1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine = small.decode_tensor(sample_latents(small, small.condition(["a red circle"]), noise, 3))
        theirs = small.pipeline(
            "a red circle", latents=noise, height=32, width=32, num_inference_steps=3, guidance_scale=1.0,
            sigmas=flow.times(3)[:-1].tolist(), output_type="pt", max_sequence_length=0,
        ).images  # fmt: skip
    assert mine.shape[-2:] == (32, 32)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    for wrong in (44, 4, 512):
        with pytest.raises(ConfigError, match=f"resolution {wrong}: this generator draws multiples of 8 up to 48"):
            Sd3Generator.load(pipeline_folder, resolution=wrong)
