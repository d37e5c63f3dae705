"""Train the embedded generator's autoencoder: a small `AutoencoderKL`, 48x48 pixels to 12x12 latents of 8 channels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from rewarddance.core.config import Config, Precision
from rewarddance.core.device import autocast, resolve_precision
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.loop_config import LoopConfig, OptimConfig
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
    optim: OptimConfig = OptimConfig(lr=1.5e-3, warmup_steps=30, schedule="cosine", ema_decay=0.99, weight_decay=1e-3)
    loop: LoopConfig = LoopConfig(num_steps=5000, log_every=20, save_every=500)


def pixels(seed: int, step: int, size: int) -> Tensor:
    """A batch of training pictures in [-1, 1], (B, 3, H, W)."""
    _, images = scene_batch(seed, "autoencoder", step, size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def train_autoencoder(config: AutoencoderConfig, out: Path, *, resume: bool = False) -> Path:
    """Train and save to `out/model` (Hugging Face layout). Resumes from `out` when asked."""
    folder = RunFolder(out)
    folder.start("autoencoder", config, resume=resume)
    torch.manual_seed(config.seed)
    vae = new_autoencoder().to(memory_format=torch.channels_last)
    vae.train()
    loop = Loop({"vae": vae}, config.optim, config.loop, folder)
    if resume:
        loop.resume()
    computed = resolve_precision(config.precision, "cpu", 0)

    def step(index: int) -> Metrics:
        x = pixels(config.seed, index, config.batch_size)
        with autocast("cpu", computed):
            posterior = vae.encode(x).latent_dist
            z = posterior.sample()
            z = z + config.latent_noise * z.detach().std() * torch.randn_like(z)
            y = vae.decode(z).sample.float()
        l1, mse = F.l1_loss(y, x), F.mse_loss(y, x)
        kl = posterior.kl().float().mean()
        (l1 + mse + config.kl_weight * kl).backward()
        return {"l1": l1.item(), "mse": mse.item(), "kl": kl.item()}

    loop.fit("autoencoder", ("l1", "mse", "kl"), step)
    vae.eval()
    vae.register_to_config(**latent_scale(vae, config.seed))
    vae.save_pretrained(out / "model")
    return out / "model"


@torch.no_grad()
def latent_scale(vae: torch.nn.Module, seed: int) -> dict[str, float]:
    """Shift and scale that give the latents of 512 pictures mean 0 and standard deviation 1."""
    z = vae.encode(pixels(seed, 10_000_000, 512)).latent_dist.mode()  # type: ignore[operator]
    return {"shift_factor": float(z.mean()), "scaling_factor": float(1 / z.std())}
