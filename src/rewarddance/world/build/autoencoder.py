"""Train the embedded generator's autoencoder: a small `AutoencoderKL`, 48x48 pixels to 12x12 latents of 8 channels."""

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
from rewarddance.core.device import autocast, resolve_device, resolve_precision
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.prefetch import Feed, num_workers, on_device
from rewarddance.core.runs import RunFolder
from rewarddance.world.batches import scene_batch
from rewarddance.world.build.tiny_generator import new_autoencoder


class AutoencoderConfig(Config):
    """Reconstruction (L1 and squared error), a small KL, and noise on latents, so that noisy latents decode well."""

    seed: int = 0
    batch_size: int = 16
    kl_weight: float = 2e-8
    latent_noise: float = 0.05
    """Standard deviation of the noise added before decoding, as a share of the latents' standard deviation."""
    precision: Precision = "bf16"
    device: str = "auto"
    workers: int | None = Field(None, ge=0)
    """Processes that make pictures ahead, see `core.prefetch.num_workers`."""
    optim: OptimConfig = OptimConfig(lr=1.5e-3, warmup_steps=30, schedule="cosine", ema_decay=0.99, weight_decay=1e-3)
    loop: LoopConfig = LoopConfig(num_steps=5000, log_every=20, save_every=500)


def pixels(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Training pictures (B, H, W, 3) in [-1, 1], (B, 3, H, W)."""
    x = on_device(images, device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def training_pictures(seed: int, size: int, step: int) -> NDArray[np.uint8]:
    """The pictures of a step, uint8 (size, H, W, 3)."""
    return scene_batch(seed, "autoencoder", step, size)[1]


def noise_like(x: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """Standard normal noise from the CPU's generator, so that a seed gives equal noise on every device."""
    noise = torch.randn_like(torch.empty_like(x, device="cpu", memory_format=memory_format))
    return noise.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else noise.to(x.device)


def train_autoencoder(config: AutoencoderConfig, out: Path, *, resume: bool = False) -> Path:
    """Train and save to `out/model` (Hugging Face layout). Resumes from `out` when asked."""
    folder, device = RunFolder(out), resolve_device(config.device)
    folder.start("autoencoder", config, resume=resume)
    torch.manual_seed(config.seed)
    vae = new_autoencoder().to(device, memory_format=torch.channels_last)
    vae.train()
    loop = Loop({"vae": vae}, config.optim, config.loop, folder)
    if resume:
        loop.resume()
    computed = resolve_precision(config.precision, device, 0)
    make = partial(training_pictures, config.seed, config.batch_size)

    def step(index: int) -> Metrics:
        x = pixels(feed(index), device)
        with autocast(device, computed):
            posterior = vae.encode(x).latent_dist
            z = posterior.mean + posterior.std * noise_like(posterior.mean, torch.contiguous_format)
            z = z + config.latent_noise * z.detach().std() * noise_like(z)
            y = vae.decode(z).sample.float()
        l1, mse = F.l1_loss(y, x), F.mse_loss(y, x)
        kl = posterior.kl().float().mean()
        (l1 + mse + config.kl_weight * kl).backward()
        return {"l1": l1.detach(), "mse": mse.detach(), "kl": kl.detach()}

    with Feed(make, config.loop.num_steps, num_workers(config.workers, device)) as feed:
        loop.fit("autoencoder", ("l1", "mse", "kl"), step)
    vae.eval()
    vae.register_to_config(**latent_scale(vae, config.seed))
    vae.save_pretrained(out / "model")
    return out / "model"


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, seed: int) -> dict[str, float]:
    """Shift and scale that give the latents of 512 pictures mean 0 and standard deviation 1."""
    x = pixels(training_pictures(seed, 512, 10_000_000), vae.device)
    z = vae.encode(x).latent_dist.mode()
    return {"shift_factor": float(z.mean()), "scaling_factor": float(1 / z.std())}
