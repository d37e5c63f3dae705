"""From pictures to the latents that a transformer draws, and back. They compute in the autoencoder's type, fp32."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Autoencoder(Protocol):
    """Pixels are (B, 3, H, W) in [-1, 1]; latents (B, C, h, w), normalised to about unit variance."""

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


class KlAutoencoder:
    """`AutoencoderKL` with one scale and one shift (SD3, FLUX.1, Z-Image)."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def encode(self, pixels: Tensor) -> Tensor:
        z = self.vae.encode(pixels).latent_dist.mode()
        return torch.as_tensor((z - self.vae.config.shift_factor) * self.vae.config.scaling_factor)

    def decode(self, z: Tensor) -> Tensor:
        z = z.to(self.vae.dtype) / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return torch.as_tensor(self.vae.decode(z).sample)


class QwenAutoencoder:
    """`AutoencoderKLQwenImage`: each channel has a mean and a standard deviation; a picture is a clip of one frame."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, (C, 1, 1, 1)."""
        config = self.vae.config
        mean, std = (torch.tensor(v).view(-1, 1, 1, 1).to(like) for v in (config.latents_mean, config.latents_std))
        return mean, std

    def encode(self, pixels: Tensor) -> Tensor:
        z = self.vae.encode(pixels[:, :, None]).latent_dist.mode()
        mean, std = self._statistics(z)
        return torch.as_tensor((z - mean) / std)[:, :, 0]

    def decode(self, z: Tensor) -> Tensor:
        z = z.to(self.vae.dtype)[:, :, None]
        mean, std = self._statistics(z)
        return torch.as_tensor(self.vae.decode(z * std + mean).sample)[:, :, 0]
