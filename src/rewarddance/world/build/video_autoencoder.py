"""Train the embedded video models' autoencoder: a small `AutoencoderKLWan`, 9x48x48 pixels to 5x12x12 latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.core.device import autocast, resolve_device, resolve_precision
from rewarddance.core.loop import Loop, Metrics
from rewarddance.core.runs import RunFolder
from rewarddance.core.streams import seed_of, stream
from rewarddance.generator.whole_clip import decode_clips, encode_moments
from rewarddance.world.build.clip_pool import ClipPool, signed
from rewarddance.world.build.saving import rounded, save_bf16
from rewarddance.world.build.tiny_video import new_video_autoencoder
from rewarddance.world.build.video_config import VideoAutoencoderConfig
from rewarddance.world.motion.batches import clip_batch
from rewarddance.world.motion.benchmark import action_set
from rewarddance.world.motion.render import render
from rewarddance.world.scene import CANVAS


def train_video_autoencoder(config: VideoAutoencoderConfig, out: Path, *, resume: bool = False) -> Path:
    """Train and save to `out/model` (diffusers layout, bf16). Resumes from `out` when asked."""
    folder = RunFolder(out)
    folder.start("video-autoencoder", config, resume=resume)
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    vae = AutoencoderKLWan.from_pretrained(config.start) if config.start else new_video_autoencoder()
    vae = vae.to(device).train()
    if config.channels_last:
        _arrange(vae, channels_last=True)
    layout = torch.channels_last_3d if config.channels_last else torch.contiguous_format
    loop = Loop({"vae": vae}, config.optim, config.loop, folder)
    if resume:
        loop.resume()
    computed = resolve_precision(config.precision, device, 0)
    pool = ClipPool(config, "video-autoencoder", loop.step, config.loop.num_steps, device, _clips_only)
    held_out = held_out_clips()[: config.validation_clips].to(device)

    def step(index: int) -> Metrics:
        clips, objects = _shown(pool.batch(index)["clips"], config, index)
        rng = torch.Generator(device).manual_seed(seed_of(config.seed, "video-autoencoder-noise", index))
        x = signed(clips).contiguous(memory_format=layout)
        with autocast(device, computed):
            mean, log_variance = encode_moments(vae, x).float().chunk(2, 1)
            z = _noisy_latents(mean, log_variance, config.latent_noise, rng)
            y = decode_clips(vae, z).float()
        parts = {"kl": _kl(mean, log_variance), **reconstruction(y, x, objects, config.foreground_weight)}
        loss = parts["l1"] + parts["mse"] + config.edge_weight * parts["edge"] + config.kl_weight * parts["kl"]
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.item(), **{k: v.item() for k, v in parts.items()}, "waited": round(pool.waited, 4)}

    @torch.no_grad()
    def validate(index: int) -> Metrics:
        with loop.averaged(), autocast(device, computed):
            return {f"val_{k}": v for k, v in sharpness(reconstruct(vae, held_out), held_out).items()}

    loop.fit("video autoencoder", ("loss", "l1", "val_psnr", "val_psnr_objects"), step, validate)
    _arrange(vae, channels_last=False)
    rounded(vae.eval())
    vae.register_to_config(**measured_statistics(vae, config.seed, config.num_statistics, device))
    save_bf16(vae, out / "model")
    return out / "model"


def _arrange(vae: nn.Module, channels_last: bool) -> None:
    """Order the weights of convolutions in memory."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
    for p in vae.parameters():
        p.data = p.data.contiguous(memory_format=formats.get(p.ndim, torch.contiguous_format))


def _clips_only(clips: Tensor, _: Tensor) -> dict[str, Tensor]:
    return {"clips": clips}


def _shown(clips: Tensor, config: VideoAutoencoderConfig, index: int) -> tuple[Tensor, Tensor]:
    """What a step learns from, and where its objects are: crops at objects, and fewer whole clips in the last steps."""
    objects = foreground(clips)
    if index >= (1 - config.whole_share) * config.loop.num_steps:
        num = max(1, round(len(clips) * (config.crop / CANVAS) ** 2))
        return clips[:num], objects[:num]
    return crops(clips, objects, config.crop, stream(config.seed, "video-crops", index))


def crops(clips: Tensor, objects: Tensor, side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A square of every clip that covers a random pixel of `objects`, in all frames.

    The corner of a square is a multiple of 4, because a latent covers 4x4 pixels. A clip without an object is cut
    anywhere.

    Args:
        clips: uint8 (B, F, H, W, 3).
        objects: (B, 1, F, H, W), above 0 where an object is.

    Returns:
        The squares of the clips, (B, F, side, side, 3), and of the objects, (B, 1, F, side, side).
    """
    pairs = []
    for clip, mask in zip(clips, objects, strict=True):
        sizes = clip.shape[1:3]
        places = mask.amax((0, 1)).nonzero().cpu().numpy()
        centre = places[rng.integers(len(places))] if len(places) else rng.integers(sizes)
        corner = np.clip(centre - rng.integers(side - 3, size=2), 0, np.array(sizes) - side) // 4 * 4
        top, left = map(int, corner)
        rows, columns = slice(top, top + side), slice(left, left + side)
        pairs.append((clip[:, rows, columns], mask[:, :, rows, columns]))
    return torch.stack([c for c, _ in pairs]), torch.stack([m for _, m in pairs])


def _noisy_latents(mean: Tensor, log_variance: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """A draw from the posterior, with further noise of a share of the latents' standard deviation."""
    spread = torch.exp(log_variance.clamp(-30, 20)) + (share * mean.detach().std()) ** 2
    return mean + spread.sqrt() * torch.randn(mean.shape, generator=rng, device=mean.device)


def _kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of the posterior from the standard normal distribution, mean over elements."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()


def foreground(clips: Tensor) -> Tensor:
    """Pixels at most one pixel and one frame away from an object, as 0 and 1, (B, 1, F, H, W).

    Objects stay clear of the border, so the corner shows the background.

    Args:
        clips: uint8 (B, F, H, W, 3), as rendered.
    """
    painted = (clips != clips[:, :1, :1, :1]).any(-1)
    return F.max_pool3d(painted[:, None].float(), 3, 1, 1)


def reconstruction(y: Tensor, x: Tensor, objects: Tensor, weight: float) -> dict[str, Tensor]:
    """Weighted means of the absolute error, the squared error, and the absolute error of differences to neighbours.

    Args:
        y: reconstruction; x: target, both (B, 3, F, H, W).
        objects: (B, 1, F, H, W); a pixel weighs 1 + weight * objects.
    """
    error, weights = y - x, 1 + weight * objects
    total = 3 * weights.sum()
    edge = torch.zeros((), device=x.device)
    for axis in (2, 3, 4):
        both = torch.minimum(weights.narrow(axis, 1, x.shape[axis] - 1), weights.narrow(axis, 0, x.shape[axis] - 1))
        edge = edge + (both * error.diff(dim=axis).abs()).sum() / (3 * both.sum())
    return {"l1": (weights * error.abs()).sum() / total, "mse": (weights * error**2).sum() / total, "edge": edge}


def held_out_clips() -> Tensor:
    """The clips of a held-out development set, uint8 (48, F, H, W, 3)."""
    return torch.from_numpy(np.stack([render(p.scene) for p in action_set("t2v-dev")]))


def reconstruct(vae: Any, clips: Tensor, batch: int = 64) -> Tensor:
    """uint8 clips through the autoencoder and back."""
    parts = []
    for part in torch.split(clips, batch):
        mode = encode_moments(vae, signed(part)).chunk(2, 1)[0]
        parts.append(as_uint8(decode_clips(vae, mode)))
    return torch.cat(parts)


def as_uint8(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, F, H, W) around [-1, 1] as uint8 clips (B, F, H, W, 3)."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def sharpness(decoded: Tensor, clips: Tensor) -> dict[str, float]:
    """Peak signal-to-noise ratio in dB, of all pixels and of those at or beside objects."""
    squared = (decoded.float() - clips.float()) ** 2
    objects = foreground(clips)[:, 0, ..., None].expand_as(squared) > 0
    errors = {"psnr": squared.mean(), "psnr_objects": squared[objects].mean()}
    return {k: float(10 * torch.log10(255**2 / v.clamp(min=1e-6))) for k, v in errors.items()}


@torch.no_grad()
def measured_statistics(vae: Any, seed: int, num: int, device: torch.device) -> dict[str, list[float]]:
    """Mean and standard deviation of every channel of the latents of `num` clips, over clips, frames and places."""
    total, squares, count = torch.zeros((), device=device), torch.zeros((), device=device), 0
    for index in range(0, num, 100):
        clips = torch.from_numpy(clip_batch(seed, "video-latents", index, min(100, num - index))[1]).to(device)
        z = encode_moments(vae, signed(clips)).chunk(2, 1)[0].double()
        total, squares = total + z.sum((0, 2, 3, 4)), squares + (z**2).sum((0, 2, 3, 4))
        count += z[:, 0].numel()
    mean = total / count
    std = (squares / count - mean**2).sqrt()
    return {"latents_mean": mean.tolist(), "latents_std": std.tolist()}
