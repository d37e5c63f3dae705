"""Encode and decode a clip with `AutoencoderKLWan` in one pass.

The class itself takes a clip in chunks of four frames and keeps the last frames of every layer's input for the next
chunk. One pass over all frames computes the same numbers with fewer and larger operations. A gradient can pass through
both.

`decode_chunks` needs less memory for a gradient: it decodes a few latent frames at a time.

Shapes: clips (B, 3, F, H, W) in [-1, 1] with F = 1 + a multiple of the temporal factor; latents (B, C, f, h, w).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanResample,
    WanResidualDownBlock,
    WanResidualUpBlock,
    WanUpBlock,
    patchify,
    unpatchify,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Cache = tuple[Tensor | str | None, ...]
"""Entries of the class's own cache: frames of an input, None before the first, or a mark at the first upsampling."""


def encode_moments(vae: Any, clips: Tensor) -> Tensor:
    """Mean and log-variance of the posterior, (B, 2 C, f, h, w)."""
    x = clips if vae.config.patch_size is None else patchify(clips, vae.config.patch_size)
    encoder = vae.encoder
    x = encoder.conv_in(x)
    for layer in encoder.down_blocks:
        x = _down(layer, x)
    return torch.as_tensor(vae.quant_conv(_end(encoder, encoder.mid_block(x))))


def decode_clips(vae: Any, z: Tensor) -> Tensor:
    """Clips of latents, not clamped, (B, 3, F, H, W)."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(z)))
    for block in decoder.up_blocks:
        x = _up(block, x)
    x = _end(decoder, x)
    return x if vae.config.patch_size is None else torch.as_tensor(unpatchify(x, vae.config.patch_size))


def decode_chunks(vae: Any, z: Tensor, num: int) -> Tensor:
    """`decode_clips` with the same gradient, for less memory: `num` latent frames at a time.

    As in the class's own decode, the last two frames of the input of every convolution are kept for the next chunk;
    gradients pass through them. The other activations are computed again in the backward pass, so that those of one
    chunk are in memory at a time.

    Args:
        z: (B, C, f, h, w).
        num: latent frames of a chunk.
    """
    x, parts = vae.post_quant_conv(z), []
    cache: Cache = (None,) * vae._cached_conv_counts["decoder"]
    for first in range(0, z.shape[2], num):
        chunk = x[:, :, first : first + num]
        part, cache = checkpoint(decode_part, vae, chunk, cache, first == 0, use_reentrant=False)
        parts.append(part)
    clips = torch.cat(parts, 2)
    return clips if vae.config.patch_size is None else torch.as_tensor(unpatchify(clips, vae.config.patch_size))


def decode_part(vae: Any, x: Tensor, cache: Cache, begins: bool) -> tuple[Tensor, Cache]:
    """Frames of some latent frames, and what the next ones need of them.

    Args:
        x: (B, C, n, h, w), after `post_quant_conv`.
        cache: for every convolution over time the last frames of its input so far.
        begins: whether the clip begins here.
    """
    entries, parts = list(cache), []
    for i in range(x.shape[2]):
        part = vae.decoder(x[:, :, i : i + 1], feat_cache=entries, feat_idx=[0], first_chunk=begins and i == 0)
        parts.append(part)
    return torch.cat(parts, 2), tuple(entries)


def _end(part: Any, x: Tensor) -> Tensor:
    return torch.as_tensor(part.conv_out(part.nonlinearity(part.norm_out(x))))


def _down(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, WanResample):
        return _resample(layer, x)
    if not isinstance(layer, WanResidualDownBlock):
        return torch.as_tensor(layer(x))
    shortcut = layer.avg_shortcut(x)
    for resnet in layer.resnets:
        x = resnet(x)
    x = x if layer.downsampler is None else _resample(layer.downsampler, x)
    return torch.as_tensor(x + shortcut)


def _up(block: WanUpBlock | WanResidualUpBlock, x: Tensor) -> Tensor:
    shortcut = None
    if isinstance(block, WanResidualUpBlock):
        resample = block.upsampler
        if block.avg_shortcut is not None:
            shortcut = block.avg_shortcut(x, first_chunk=True)
    else:
        resample = None if block.upsamplers is None else block.upsamplers[0]
    for resnet in block.resnets:
        x = resnet(x)
    x = x if resample is None else _resample(resample, x)
    return x if shortcut is None else torch.as_tensor(x + shortcut)


def _resample(layer: Any, x: Tensor) -> Tensor:
    """`WanResample` over all frames. The first frame has no part in the convolutions over time, as in the chunks."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        later = layer.time_conv(x[:, :, 1:])
        b, c, t, h, w = later.shape
        later = later.reshape(b, 2, c // 2, t, h, w).permute(0, 2, 3, 1, 4, 5).reshape(b, c // 2, 2 * t, h, w)
        x = torch.cat([x[:, :, :1], later], 2)
    b, _, t, _, _ = x.shape
    frames = layer.resample(x.transpose(1, 2).flatten(0, 1))
    x = frames.unflatten(0, (b, t)).transpose(1, 2)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], 2)
    return x


def latent_statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents' channels, (C, 1, 1, 1) each, on the device and in the type of
    `like`."""
    config = vae.config
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1).to(like) for v in (config.latents_mean, config.latents_std))
    return mean, std


class WanAutoencoder:
    """`AutoencoderKLWan` between clips in [-1, 1] and normalised latents.

    Attributes:
        chunk: latent frames that are decoded at a time where a gradient is needed; 0 decodes whole clips.
    """

    def __init__(self, vae: Any) -> None:
        self.vae, self.chunk = vae, 0

    def encode(self, pixels: Tensor) -> Tensor:
        mode = encode_moments(self.vae, pixels).chunk(2, 1)[0]
        mean, std = latent_statistics(self.vae, mode)
        return (mode - mean) / std

    def decode(self, z: Tensor) -> Tensor:
        z = z.to(self.vae.dtype)
        mean, std = latent_statistics(self.vae, z)
        z = z * std + mean
        if self.chunk and z.requires_grad and torch.is_grad_enabled():
            return decode_chunks(self.vae, z, self.chunk)
        return decode_clips(self.vae, z)
