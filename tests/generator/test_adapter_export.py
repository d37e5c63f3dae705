"""Exported adapters for readers that ignore the file's metadata, SD3 folders that lack parts, and prompts for a T5."""

import pickle
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from rewarddance.core.errors import ConfigError
from rewarddance.generator import flow
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.generator.trace import sample_latents
from rewarddance.world.bpe import train_bpe

PROMPTS = ["flat drawing of a red circle on white", "striped drawing of two blue squares on black"]
EXPORT = "pytorch_lora_weights.safetensors"
STEPS = 3


@pytest.fixture
def exported(generator, tmp_path):
    """A generator with an adapter that does something, alpha / rank = 4, and the folder that it was saved to."""
    generator.add_lora(4, 16.0)
    rng = torch.Generator().manual_seed(1)
    for name, p in generator.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1, generator=rng)
    return generator, generator.save_adapter(tmp_path / "adapter")


def pictures_of(generator, noise):
    with torch.no_grad():
        return generator.decode_tensor(sample_latents(generator, generator.condition(PROMPTS), noise, STEPS))


def pictures_by(pipeline, noise):
    """By the pipeline's own call."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS, num_inference_steps=STEPS, guidance_scale=1.0, latents=noise, max_sequence_length=0, output_type="pt",
        sigmas=flow.times(STEPS)[:-1].tolist(),
    ).images  # fmt: skip


def plain_pipeline(folder):
    return StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)


def test_diffusers_without_the_metadata_draws_the_same_pictures(exported, pipeline_folder):
    generator, folder = exported
    noise = generator.noise(2, torch.Generator().manual_seed(0))
    pipeline = plain_pipeline(pipeline_folder)
    pipeline.load_lora_weights(load_file(folder / EXPORT))  # tensors alone, so alpha is taken to be the rank
    expected = pictures_of(generator, noise)
    torch.testing.assert_close(pictures_by(pipeline, noise), expected, atol=1e-5, rtol=0)
    with generator.reference():
        assert float((pictures_of(generator, noise) - expected).abs().max()) > 0.01


def test_the_product_of_the_exported_matrices_is_what_the_adapter_adds(exported, pipeline_folder):
    generator, folder = exported
    state = load_file(folder / EXPORT)
    bare = Sd3Generator.load(pipeline_folder)
    weights = dict(bare.transformer.named_parameters())
    names = sorted(k.removesuffix(".lora_A.weight") for k in state if k.endswith(".lora_A.weight"))
    assert len(state) == 2 * len(names) > 0
    with torch.no_grad():
        for name in names:
            change = state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
            weights[f"{name.removeprefix('transformer.')}.weight"] += change
    noise = generator.noise(2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(pictures_of(bare, noise), pictures_of(generator, noise), atol=1e-5, rtol=0)


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "lost",
    [
        "transformer",
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler",
    ],
)
def test_an_incomplete_folder_is_one_line(lost, pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "sd3")
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ConfigError) as caught:
        Sd3Generator.load(folder)
    assert str(caught.value).startswith(f"{folder}: cannot be loaded (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "stem"), [("transformer", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")]
)
def test_pickled_weights_are_not_read(part, stem, pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "sd3")
    next((folder / part).glob("*.safetensors")).unlink()
    (folder / part / f"{stem}.bin").write_bytes(pickle.dumps(Malicious(tmp_path / "written")))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Sd3Generator.load(folder)
    assert not (tmp_path / "written").exists()


@pytest.fixture(scope="module")
def t5_folder(pipeline_folder, tmp_path_factory):
    """The random pipeline with a one-layer T5 as its third text encoder."""
    torch.manual_seed(0)
    pipeline = Sd3Generator.load(pipeline_folder).pipeline
    config = dict(pipeline.transformer.config) | {"joint_attention_dim": 256}
    pipeline.transformer = type(pipeline.transformer).from_config(config)
    torch.nn.init.normal_(pipeline.transformer.proj_out.weight, std=0.05)
    bpe = train_bpe(640, ["<pad>", "</s>"])
    bpe.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", bpe.token_to_id("</s>"))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="<pad>")
    size = {"d_model": 256, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "vocab_size": len(tokenizer)}
    encoder = T5EncoderModel(T5Config(**size)).eval()
    pipeline.register_modules(text_encoder_3=encoder, tokenizer_3=tokenizer)
    folder = tmp_path_factory.mktemp("t5")
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("length", [6, 40])
def test_a_t5_reads_max_sequence_length_tokens(length, t5_folder):
    generator = Sd3Generator.load(t5_folder, max_sequence_length=length)
    tokens = [len(generator.pipeline.tokenizer_3(p)["input_ids"]) for p in PROMPTS]
    assert generator.num_cut(PROMPTS) == sum(n > length for n in tokens)
    clip = generator.pipeline.tokenizer.model_max_length
    assert generator.condition(PROMPTS).embeds.shape == (2, clip + length, 256)
    noise = generator.noise(2, torch.Generator().manual_seed(0))
    ours = pictures_of(generator, noise)
    generator.pipeline.set_progress_bar_config(disable=True)
    theirs = generator.pipeline(
        PROMPTS, num_inference_steps=STEPS, guidance_scale=1.0, latents=noise, output_type="pt",
        max_sequence_length=length, sigmas=flow.times(STEPS)[:-1].tolist(),
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_t5_sees_what_lies_beyond_the_clip_encoders(t5_folder):
    """The CLIP encoders read 24 tokens; words behind them reach the transformer through the T5 alone."""
    long = " ".join(PROMPTS * 2)
    pair = [f"{long} on white", f"{long} on black"]
    short, whole = (Sd3Generator.load(t5_folder, max_sequence_length=n) for n in (24, 80))
    assert (short.num_cut(pair), whole.num_cut(pair)) == (2, 0)
    first, second = short.condition(pair).embeds
    assert torch.equal(first, second)
    first, second = whole.condition(pair).embeds
    assert not torch.allclose(first, second, atol=1e-4)


def test_without_a_t5_the_clip_encoders_decide_what_is_cut(generator):
    limit = generator.pipeline.tokenizer.model_max_length
    prompts = [*PROMPTS, " ".join(PROMPTS * 2)]
    tokens = [len(generator.pipeline.tokenizer(p)["input_ids"]) for p in prompts]
    assert [n > limit for n in tokens] == [False, False, True]
    assert generator.num_cut(prompts) == 1
