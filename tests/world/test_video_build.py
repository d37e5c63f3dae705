"""Training of the embedded video models: whole-clip passes, statistics, resume, workers, growth to image-to-video."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from tiny_wan import tiny_video_pipeline

from rewarddance.core.errors import StoppedError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.runs import RunFolder
from rewarddance.generator.base import load_pipeline
from rewarddance.generator.whole_clip import WanAutoencoder, decode_chunks, decode_clips, encode_moments
from rewarddance.world.build.clip_pool import ClipPool, signed
from rewarddance.world.build.tiny_video import new_video_transformer
from rewarddance.world.build.video_autoencoder import (
    crops,
    foreground,
    measured_statistics,
    reconstruction,
    train_video_autoencoder,
)
from rewarddance.world.build.video_config import (
    ClipStreamConfig,
    ImageToVideoConfig,
    VideoAutoencoderConfig,
    VideoGeneratorConfig,
)
from rewarddance.world.build.video_generator import (
    embed,
    encoder,
    frame_weights,
    grown_transformer,
    random_times,
    train_image_to_video,
    train_text_to_video,
)
from rewarddance.world.build.video_sampling import generator_of
from rewarddance.world.build.video_validation import pack, validate_generator
from rewarddance.world.motion.batches import PROMPT_TOKENS, clip_batch, prompt_ids
from rewarddance.world.motion.benchmark import action_set

CPU = torch.device("cpu")


def shuffled(module, seed=0):
    """Random weights everywhere, so that nothing is zero at the start."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=rng) + (p.ndim < 2))
    return module


VAES = {
    "embedded": {
        "dim_mult": [1, 2], "temperal_downsample": [True], "patch_size": 2, "in_channels": 12, "out_channels": 12,
        "scale_factor_temporal": 2, "scale_factor_spatial": 4, "decoder_base_dim": 16,
    },
    "wan21": {"dim_mult": [1, 1, 1], "temperal_downsample": [False, True]},
    "wan22": {
        "dim_mult": [1, 2, 2], "temperal_downsample": [True, True], "is_residual": True, "patch_size": 2,
        "in_channels": 12, "out_channels": 12,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_one_pass_over_a_clip_and_chunks_with_gradient_equal_the_own_decode(name, num_frames):
    kind = {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = AutoencoderKLWan(**kind | VAES[name]).eval().double()
    x = torch.rand(2, 3, num_frames, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        moments = encode_moments(vae, x)
        assert torch.allclose(moments, vae.encode(x).latent_dist.parameters, atol=1e-9)
        z = moments[:, :4]
        assert torch.allclose(decode_clips(vae, z).clamp(-1, 1), vae.decode(z).sample, atol=1e-9)
    found = []
    for decode in (decode_clips, lambda vae, z: decode_chunks(vae, z, 2)):
        latents = z.clone().requires_grad_()
        clips = decode(vae, latents)
        found.append((clips.detach(), *torch.autograd.grad(clips.square().mean(), latents)))
    for whole, chunks in zip(*found, strict=True):
        assert torch.allclose(whole, chunks, atol=1e-9)


def test_latents_have_mean_zero_and_deviation_one_after_normalisation():
    vae = tiny_video_pipeline(num_layers=1).vae
    with torch.no_grad():
        vae.quant_conv.bias[:8] += torch.arange(8.0)
    vae.register_to_config(**measured_statistics(vae, 3, 64, CPU))
    clips = torch.from_numpy(clip_batch(3, "video-latents", 0, 64)[1])  # those that were measured
    with torch.no_grad():
        z = WanAutoencoder(vae).encode(signed(clips))
    assert z.mean((0, 2, 3, 4)).abs().max() < 1e-3
    assert (z.std((0, 2, 3, 4)) - 1).abs().max() < 1e-3
    stock = vae.encode(signed(clips[:2])).latent_dist.mode().transpose(1, -1)
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    assert torch.allclose(((stock - mean) / std).transpose(1, -1), z[:2], atol=1e-4)


def test_reconstruction_error_counts_objects_more_and_differences_along_every_axis():
    x, y = torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2)
    y[0, :, 0, 0, 0] = 0.5
    objects = torch.zeros(1, 1, 2, 2, 2)
    objects[0, 0, 0, 0, 0] = 1
    parts = reconstruction(y, x, objects, 3.0)
    assert float(parts["l1"]) == pytest.approx(4 * 0.5 / 11)
    assert float(parts["mse"]) == pytest.approx(4 * 0.25 / 11)
    assert float(parts["edge"]) == pytest.approx(3 * 0.5 / 4)  # along each axis one of four pairs differs, by 0.5


def test_foreground_is_what_differs_from_the_background_and_its_neighbours():
    clips = torch.full((1, 3, 9, 9, 3), 200, dtype=torch.uint8)
    clips[0, 0, 4, 4, 1] = 10
    near = foreground(clips)[0, 0]
    assert near.sum() == 2 * 9  # 3x3 pixels in the frame itself and in the next one
    assert near[1, 3:6, 3:6].all()


def test_crops_cover_an_object_in_all_frames():
    clips = torch.full((20, 3, 48, 48, 3), 7, dtype=torch.uint8)
    clips[:, 1, 24, 5] = 200
    clips[-1] = 7  # a clip without an object
    masks = (clips != 7).any(-1)[:, None].float()
    parts, objects = crops(clips, masks, 24, np.random.default_rng(0))
    assert parts.shape == (20, 3, 24, 24, 3)
    assert objects.shape == (20, 1, 3, 24, 24)
    assert objects.sum((1, 2, 3, 4)).tolist() == [1.0] * 19 + [0.0]
    for part, mask in zip(parts, objects, strict=True):
        assert torch.equal((part == 200).all(-1), mask[0] > 0)
    rows = [int(mask[0, 1].nonzero()[0, 0]) for mask in objects[:-1]]
    assert {(24 - row) % 4 for row in rows} == {0}  # corners lie on the grid of latents
    assert len(set(rows)) > 2


def test_the_number_of_workers_does_not_change_batches():
    config = ClipStreamConfig(batch_size=6, fresh=2, pool=6, seed=5)

    def batches(workers, first):
        pool = ClipPool(config.model_copy(update={"workers": workers}), "test", first, 6, CPU, both)
        return [pool.batch(i) for i in range(first, 6)]

    def both(clips, ids):
        return {"clips": clips, "ids": ids}

    alone, helped, resumed = batches(0, 0), batches(2, 0), batches(0, 4)
    for a, b in zip(alone, helped, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("clips", "ids"))
    for a, b in zip(alone[4:], resumed, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in ("clips", "ids"))
    prompts, clips = clip_batch(5, "test", 5, 2)
    assert np.array_equal(alone[5]["clips"][:2].numpy(), clips)
    assert np.array_equal(alone[5]["ids"][:2].numpy(), prompt_ids(prompts))
    newest = torch.from_numpy(np.concatenate([clip_batch(5, "test", i, 2)[1] for i in (3, 4, 5)]))
    for clip in alone[5]["clips"][2:]:
        assert (newest == clip).flatten(1).all(1).any()


def test_grown_transformer_ignores_its_new_channels_at_the_start():
    text = shuffled(new_video_transformer(num_layers=1))
    grown = grown_transformer(text)
    z, beside, words = torch.randn(2, 8, 5, 4, 4), torch.randn(2, 10, 5, 4, 4), torch.randn(2, 6, 96)
    t = torch.tensor([100.0, 700.0])
    with torch.no_grad():
        a = text(z, t, words, return_dict=False)[0]
        b = grown(torch.cat([z, beside], 1), t, words, return_dict=False)[0]
    assert a.abs().max() > 0.1
    assert torch.allclose(a, b, atol=1e-5)


def test_embeddings_of_training_are_the_pipelines():
    pipeline = tiny_video_pipeline(num_layers=1)
    prompts = [action_set("t2v")[0].text, ""]
    stock, _ = pipeline.encode_prompt(prompts, None, False, max_sequence_length=PROMPT_TOKENS)
    with torch.no_grad():
        ours = embed(pipeline.text_encoder, torch.from_numpy(prompt_ids(prompts)))
    assert torch.allclose(ours, stock, atol=1e-5)


@pytest.mark.parametrize("shift", [3.0, 6.0])
def test_times_are_logit_normal_and_shifted_or_even(shift):
    rng = np.random.default_rng(0)
    times = random_times(rng, 20_000, 0.0, shift).astype(np.float64)
    normal = np.log(times / (1 - times)) - np.log(shift)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert abs(random_times(rng, 20_000, 1.0, shift).mean() - 0.5) < 0.01


def test_stills_are_the_latents_of_single_frames():
    generator = generator_of(tiny_video_pipeline(num_layers=1), 1.0, "fp32")
    _, clips = clip_batch(5, "test", 0, 3)
    rows = encoder(generator, stills=True)(torch.from_numpy(clips), torch.zeros(3, 4))
    assert rows["stills"].shape == (3, 8, 1, 12, 12)
    for k in range(3):
        alone = generator.autoencoder.encode(signed(torch.from_numpy(clips[k : k + 1, k : k + 1])))
        assert torch.allclose(rows["stills"][k].float(), alone[0], atol=1e-2)
    for key, value in (("stills_share", 0.1), ("start", "model")):
        with pytest.raises(ValueError, match=key):
            ImageToVideoConfig(**{key: value})


def test_frame_weights_are_inverse_to_the_spread():
    spread = torch.tensor([1.0, 2.0, 4.0, 4.0, 4.0])[None, None, :, None, None]

    def encode(clips, ids):
        return {"latents": spread * torch.ones(len(clips), 8, 5, 2, 2)}

    weights = frame_weights(encode, 0, 8, CPU).flatten()
    assert torch.allclose(weights, torch.tensor([1.0, 0.5, 0.25, 0.25, 0.25]) / 0.45, atol=1e-4)


def loop(num_steps, **keys):
    return LoopConfig(num_steps=num_steps, validate_every=num_steps, save_every=1, **keys)


OPTIM = OptimConfig(name="muon", lr=1e-3, ema_decay=0.9)


def in_parts(config, train, folder):
    stopped = config.model_copy(update={"loop": config.loop.model_copy(update={"max_seconds": 1e-9})})
    for i in range(config.loop.num_steps - 1):
        with pytest.raises(StoppedError):
            train(stopped, folder, resume=i > 0)
    return train(stopped, folder, resume=True)


@pytest.fixture(scope="module")
def small_vae(tmp_path_factory):
    config = VideoAutoencoderConfig(batch_size=2, fresh=1, pool=2, num_statistics=4, validation_clips=2, loop=loop(2))
    folder = tmp_path_factory.mktemp("vae")
    whole = train_video_autoencoder(config, folder / "whole")
    parts = in_parts(config, train_video_autoencoder, folder / "parts")
    return whole, parts


def test_resumed_autoencoder_training_equals_an_uninterrupted_one(small_vae):
    a, b = (AutoencoderKLWan.from_pretrained(f) for f in small_vae)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert a.config.latents_std == b.config.latents_std
    assert min(a.config.latents_std) > 0
    line = RunFolder(small_vae[0].parent).metrics()[-1]
    assert {"l1", "mse", "edge", "kl", "val_psnr", "val_psnr_objects", "waited"} <= line.keys()


def test_generators_train_resume_save_and_are_measured(small_vae, tmp_path):
    config = VideoGeneratorConfig(
        batch_size=3,
        fresh=1,
        pool=3,
        num_layers=1,
        guidance=1,
        num_statistics=4,
        validation_clips=1,
        sampling_steps=1,
        stills_share=0.2,  # with this seed the first step sees single frames, and the second one clips
        optim=OPTIM,
        loop=loop(2),
    )

    def train(config, out, resume=False):
        return train_text_to_video(config, small_vae[0], out, resume=resume)

    whole, parts = train(config, tmp_path / "text"), in_parts(config, train, tmp_path / "parts")
    a, b = (load_pipeline(type(tiny_video_pipeline(num_layers=1)), f, torch.float32) for f in (whole, parts))
    for part in ("transformer", "text_encoder"):
        x, y = getattr(a, part).state_dict(), getattr(b, part).state_dict()
        assert all(torch.equal(x[k], y[k]) for k in x)
    none = {"start": str(whole), "loop": LoopConfig(num_steps=0)}  # no steps: the weights that it begins with
    begun = load_pipeline(type(a), train(config.model_copy(update=none), tmp_path / "begun"), torch.float32)
    for part in ("transformer", "text_encoder"):
        x, y = getattr(a, part).state_dict(), getattr(begun, part).state_dict()
        assert all(torch.equal(x[k], y[k]) for k in x)
    image = train_image_to_video(config.model_copy(update={"stills_share": 0.0}), whole, tmp_path / "image")
    result = validate_generator(image.parent, "cpu", "fp32", 3, 1, (1.0, 2.0))
    assert set(result["guidance"]) == {"1.0", "2.0"}
    assert {"fidelity", "motion", "consistency", "first_frame"} <= result["guidance"]["2.0"].keys()
    assert len(json.loads((image.parent / "validation.json").read_text())["clips"]["1.0"]) == 3
    with Image.open(image.parent / "clips.png") as picture:
        assert picture.size == (9 * 50 - 2, 3 * 50 - 2)
    assert pack(image.parent, tmp_path / "image.tar.gz").stat().st_size > 1000
