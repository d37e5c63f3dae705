"""Pretrain the embedded video generators by flow matching on the latents of captioned clips.

Text-to-video comes first. Image-to-video starts from its weights and also reads the first picture.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rewarddance.core.device import autocast, resolve_device, resolve_precision
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.runs import RunFolder, write_json
from rewarddance.core.streams import seed_of, stream
from rewarddance.generator import flow
from rewarddance.generator.base import load_pipeline
from rewarddance.generator.wan import CLIP_FILE, WanGenerator, WanImageToVideoGenerator
from rewarddance.world.build.clip_pool import ClipPool, fresh_clips, signed
from rewarddance.world.build.saving import rounded, save_bf16
from rewarddance.world.build.tiny_video import (
    LATENT_CHANNELS,
    SHIFT,
    new_video_text_encoder,
    new_video_tokenizer,
    new_video_transformer,
)
from rewarddance.world.build.video_config import VideoGeneratorConfig
from rewarddance.world.build.video_sampling import SHAPE, generator_of, sample_clips
from rewarddance.world.build.video_scores import mean_scores, scores_of
from rewarddance.world.motion.batches import END, PAD
from rewarddance.world.motion.benchmark import action_set


def train_text_to_video(config: VideoGeneratorConfig, vae_folder: Path, out: Path, *, resume: bool = False) -> Path:
    """Train and save a `WanPipeline` to `out/model` (diffusers layout, bf16)."""
    device = resolve_device(config.device)
    RunFolder(out).start("text-to-video", config, resume=resume)
    torch.manual_seed(config.seed)
    vae = AutoencoderKLWan.from_pretrained(vae_folder, torch_dtype=torch.float32)
    if config.start is not None:
        pipeline = load_pipeline(WanPipeline, Path(config.start), torch.float32)
        pipeline.register_modules(vae=vae)
    else:
        tokenizer = new_video_tokenizer()
        pipeline = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=new_video_text_encoder(tokenizer),
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            transformer=new_video_transformer(num_layers=config.num_layers),
        )
    pipeline.to(device)
    return _train(config, pipeline, "text-to-video", out, resume)


def train_image_to_video(config: VideoGeneratorConfig, start: Path, out: Path, *, resume: bool = False) -> Path:
    """Train and save a `WanImageToVideoPipeline` to `out/model` (diffusers layout, bf16).

    Args:
        start: the `WanPipeline` whose weights it begins with.
    """
    device = resolve_device(config.device)
    RunFolder(out).start("image-to-video", config, resume=resume)
    torch.manual_seed(config.seed)
    parts = load_pipeline(WanPipeline, start, torch.float32)
    pipeline = WanImageToVideoPipeline(
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        vae=parts.vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=grown_transformer(parts.transformer),
    )
    pipeline.to(device)
    return _train(config, pipeline, "image-to-video", out, resume)


@torch.no_grad()
def grown_transformer(transformer: Any) -> Any:
    """An image-to-video transformer that computes what the given one does: the weights of its new channels are zero."""
    grown = new_video_transformer(from_picture=True, num_layers=transformer.config.num_layers)
    weights = dict(transformer.state_dict())
    patches = torch.zeros_like(grown.patch_embedding.weight)
    patches[:, :LATENT_CHANNELS] = weights["patch_embedding.weight"]
    grown.load_state_dict({**weights, "patch_embedding.weight": patches})
    return grown


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    """What is trained. The word embeddings have a name of their own, so that AdamW trains them and not Muon."""
    text = pipeline.text_encoder
    return {
        "transformer": pipeline.transformer,
        "text_embedding": text.shared,
        "text_blocks": text.encoder.block,
        "text_norm": text.encoder.final_layer_norm,
    }


def _train(config: VideoGeneratorConfig, pipeline: Any, name: str, out: Path, resume: bool) -> Path:
    device = pipeline.device
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        part.eval()  # the text encoder has dropout in training mode
    pipeline.vae.requires_grad_(False)
    modules = _modules(pipeline)
    for module in modules.values():
        module.requires_grad_(True)
    loop = Loop(modules, config.optim, config.loop, RunFolder(out))
    if resume:
        loop.resume()
    if config.compile:
        for block in pipeline.transformer.blocks:
            block.compile()
    from_picture = name == "image-to-video"
    encode = encoder(generator_of(pipeline, 1.0, "fp32"), config.stills_share > 0)
    pool = ClipPool(config, name, loop.step, config.loop.num_steps, device, encode)
    weights = frame_weights(encode, config.seed, config.num_statistics, device)
    computed = resolve_precision(config.precision, device, 0)

    def step(index: int) -> Metrics:
        if stream(config.seed, "stills", index).random() < config.stills_share:
            rows = pool.batch(index, config.batch_size * weights.shape[2], ("ids", "stills"))
            stills = {"ids": rows["ids"], "latents": rows["stills"]}
            loss = flow_loss(pipeline, stills, torch.ones(1, device=device), config, index)
        else:
            loss = flow_loss(pipeline, pool.batch(index), weights, config, index)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.item(), "waited": round(pool.waited, 4)}

    prompts = action_set("i2v-dev" if from_picture else "t2v-dev")[: config.validation_clips]

    def validate(index: int) -> Metrics:
        with loop.averaged():
            generator = generator_of(pipeline, config.guidance, computed)  # a new one, because it keeps embeddings
            clips = sample_clips(generator, prompts, config.sampling_steps, config.seed)
        return {f"val_{k}": v for k, v in mean_scores(scores_of(clips, prompts, from_picture)).items()}

    with _attention(device):
        loop.fit(name.replace("-", " "), ("loss", "val_fidelity", "val_motion"), step, validate)
    rounded(pipeline.transformer)
    rounded(pipeline.text_encoder)
    save_bf16(pipeline, out / "model")
    write_json(out / "model" / CLIP_FILE, asdict(SHAPE))
    return out / "model"


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the plain products have the faster backward pass."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def encoder(generator: WanGenerator, stills: bool = False) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """What a pool keeps: token ids, latents in half precision, and for image-to-video the picture's latents.

    Args:
        stills: also keep the latents of one frame of every clip, encoded as a clip of one frame. The n-th clip of a
            call gives frame n modulo the number of frames.
    """

    @torch.no_grad()
    def encode(clips: Tensor, ids: Tensor) -> dict[str, Tensor]:
        x = signed(clips)
        rows = {"ids": ids, "latents": generator.autoencoder.encode(x).half()}
        if stills:
            frames = torch.arange(len(x), device=x.device) % x.shape[2]
            rows["stills"] = generator.autoencoder.encode(x[torch.arange(len(x)), :, frames][:, :, None]).half()
        if isinstance(generator, WanImageToVideoGenerator):
            rows["picture"] = generator.picture_latents(x[:, :, 0]).half()
        return rows

    return encode


def frame_weights(
    encode: Callable[[Tensor, Tensor], dict[str, Tensor]], seed: int, num: int, device: torch.device
) -> Tensor:
    """Weights of the latent frames with mean 1, (1, 1, f, 1, 1): inverse to the standard deviation of their latents.

    The first latent holds one frame and the others two, so their spreads differ.
    """
    squares: list[Tensor] = []
    for index in range(0, num, 64):
        fresh = fresh_clips(seed, "video-spread", min(64, num - index), index)
        clips, ids = (torch.from_numpy(x).to(device) for x in fresh)
        squares.append((encode(clips, ids)["latents"].float() ** 2).mean((0, 1, 3, 4)))
    weights = torch.stack(squares).mean(0).rsqrt()
    return (weights / weights.mean())[None, None, :, None, None]


def flow_loss(
    pipeline: Any, rows: dict[str, Tensor], weights: Tensor, config: VideoGeneratorConfig, index: int
) -> Tensor:
    """Mean squared velocity error at random times, weighted by latent frame.

    Args:
        rows: a batch of `encoder`.
        weights: (1, 1, f, 1, 1), or one number.
        index: the step, which decides times, noise and dropped prompts.
    """
    x = rows["latents"].float()
    rng = stream(config.seed, "video-times", index)
    t = torch.from_numpy(random_times(rng, len(x), config.uniform_share, config.time_shift)).to(x)
    dropped = torch.from_numpy(rng.random(len(x)) < config.prompt_dropout).to(x.device)
    ids = rows["ids"].where(~dropped[:, None], _empty(rows["ids"]))
    noise_rng = torch.Generator(x.device).manual_seed(seed_of(config.seed, "video-noise", index))
    noise = torch.randn(x.shape, generator=noise_rng, device=x.device)
    z = flow.add_noise(x, noise, t)
    if "picture" in rows:
        z = torch.cat([z, rows["picture"].float()], 1)
    with autocast(x.device, resolve_precision(config.precision, x.device, 0)):
        text = embed(pipeline.text_encoder, ids)
        v = pipeline.transformer(
            hidden_states=z, timestep=t * 1000, encoder_hidden_states=text, return_dict=False
        )[0]  # fmt: skip
    return torch.as_tensor((weights * (v.float() - (noise - x)) ** 2).mean())


def embed(text_encoder: Any, ids: Tensor) -> Tensor:
    """Embeddings of prompts as the Wan pipelines make them: those of padding are zero, (B, T, D)."""
    mask = (ids != PAD).long()
    states = text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.as_tensor(states * mask[..., None])


def _empty(ids: Tensor) -> Tensor:
    """The ids of the empty prompt, (1, T)."""
    empty = torch.full_like(ids[:1], PAD)
    empty[:, 0] = END
    return empty


def random_times(rng: np.random.Generator, num: int, uniform_share: float, shift: float) -> NDArray[np.float32]:
    """Times in (0, 1): logit-normal (Esser et al. 2024) and shifted, or even.

    Returns:
        fp32 array (num,).
    """
    t = 1 / (1 + np.exp(-rng.standard_normal(num)))
    t = shift * t / (1 + (shift - 1) * t)
    even = rng.random(num) < uniform_share
    return np.where(even, rng.random(num), t).astype(np.float32)
