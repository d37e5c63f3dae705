"""Pretrain the embedded generator by flow matching on captioned pictures (text encoders and transformer together)."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.config import Config, Precision
from rewarddance.core.device import resolve_precision
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import stream
from rewarddance.generator import flow
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.world.batches import captioned_batch
from rewarddance.world.build.tiny_generator import new_pipeline


class GeneratorConfig(Config):
    """Flow matching: squared error of the velocity at logit-normal times (Esser et al. 2024)."""

    seed: int = 0
    batch_size: int = 96
    prompt_dropout: float = 0.1
    """Share of prompts that are replaced by the empty prompt, for classifier-free guidance."""
    precision: Precision = "bf16"
    optim: OptimConfig = OptimConfig(
        name="muon", lr=2e-3, warmup_steps=100, schedule="linear_end", ema_decay=0.999, weight_decay=0.01
    )
    loop: LoopConfig = LoopConfig(num_steps=2600, log_every=20, save_every=2000, save_seconds=300)


def flow_loss(generator: Sd3Generator, prompts: list[str], x: Tensor, rng: torch.Generator) -> Tensor:
    """Mean squared velocity error at random times, for clean latents `x` (B, C, h, w)."""
    t = torch.sigmoid(torch.randn(len(x), generator=rng))
    noise = torch.randn(x.shape, generator=rng)
    v = generator.velocity(flow.add_noise(x, noise, t), t, generator.condition(prompts))
    return F.mse_loss(v.float(), noise - x)


def train_generator(config: GeneratorConfig, vae_folder: Path, out: Path, *, resume: bool = False) -> Path:
    """Train and save to `out/model` (diffusers layout)."""
    folder = RunFolder(out)
    folder.start("generator", config, resume=resume)
    vae = AutoencoderKL.from_pretrained(vae_folder).eval().requires_grad_(False)
    pipeline = new_pipeline(vae, config.seed)
    generator = Sd3Generator(pipeline)
    generator.precision = resolve_precision(config.precision, "cpu", 0)
    modules = {
        "transformer": pipeline.transformer,
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
    }
    loop = Loop(modules, config.optim, config.loop, folder)
    if resume:
        loop.resume()

    def step(index: int) -> Metrics:
        prompts, images = captioned_batch(config.seed, "generator", index, config.batch_size)
        drop = stream(config.seed, "generator-dropout", index).random(len(prompts)) < config.prompt_dropout
        prompts = ["" if d else p for p, d in zip(prompts, drop, strict=True)]
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        with torch.no_grad():
            x = generator.encode(pixels)
        loss = flow_loss(generator, prompts, x, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.item()}

    loop.fit("generator", ("loss",), step)
    pipeline.save_pretrained(out / "model")
    return out / "model"
