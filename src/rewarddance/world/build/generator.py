"""Pretrain the embedded generator by flow matching on captioned pictures (text encoders and transformer together)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.config import Config, Precision
from rewarddance.core.device import resolve_device, resolve_precision
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.prefetch import Feed, num_workers, on_device
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
    device: str = "auto"
    workers: int | None = Field(None, ge=0)
    """Processes that make pictures ahead, see `core.prefetch.num_workers`."""
    optim: OptimConfig = OptimConfig(
        name="muon", lr=2e-3, warmup_steps=100, schedule="linear_end", ema_decay=0.999, weight_decay=0.01
    )
    loop: LoopConfig = LoopConfig(num_steps=2600, log_every=20, save_every=2000, save_seconds=300)


def flow_loss(generator: Sd3Generator, prompts: list[str], x: Tensor, rng: torch.Generator) -> Tensor:
    """Mean squared velocity error at random times, for clean latents `x` (B, C, h, w).

    `rng` is a generator of the CPU, so that a seed gives equal times and noise on every device.
    """
    t = torch.sigmoid(torch.randn(len(x), generator=rng)).to(x.device, non_blocking=True)
    noise = torch.randn(x.shape, generator=rng).to(x.device, non_blocking=True)
    v = generator.velocity(flow.add_noise(x, noise, t), t, generator.condition(prompts))
    return F.mse_loss(v.float(), noise - x)


def training_pictures(config: GeneratorConfig, step: int) -> tuple[list[str], NDArray[np.uint8]]:
    """Prompts of a step, some of them empty, and uint8 pictures (B, H, W, 3)."""
    prompts, images = captioned_batch(config.seed, "generator", step, config.batch_size)
    drop = stream(config.seed, "generator-dropout", step).random(len(prompts)) < config.prompt_dropout
    return ["" if d else p for p, d in zip(prompts, drop, strict=True)], images


def train_generator(config: GeneratorConfig, vae_folder: Path, out: Path, *, resume: bool = False) -> Path:
    """Train and save to `out/model` (diffusers layout)."""
    folder, device = RunFolder(out), resolve_device(config.device)
    folder.start("generator", config, resume=resume)
    vae = AutoencoderKL.from_pretrained(vae_folder).eval().requires_grad_(False)
    pipeline = new_pipeline(vae, config.seed)
    generator = Sd3Generator(pipeline)
    generator.to(device)
    generator.precision = resolve_precision(config.precision, device, 0)
    modules = {
        "transformer": pipeline.transformer,
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
    }
    loop = Loop(modules, config.optim, config.loop, folder)
    if resume:
        loop.resume()

    def step(index: int) -> Metrics:
        prompts, images = feed(index)
        pixels = on_device(images, device).permute(0, 3, 1, 2).float() / 255
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        with torch.no_grad():
            x = generator.encode(pixels)
        loss = flow_loss(generator, prompts, x, rng)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach()}

    make = partial(training_pictures, config)
    with Feed(make, config.loop.num_steps, num_workers(config.workers, device)) as feed:
        loop.fit("generator", ("loss",), step)
    pipeline.save_pretrained(out / "model")
    return out / "model"
