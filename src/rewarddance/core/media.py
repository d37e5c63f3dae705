"""Pictures and videos as one type: float pixels in [0, 1], shape (F, C, H, W), gradients kept."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewarddance.core.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

MAX_PIXELS = 64_000_000
"""Larger files are refused as decompression bombs; an 8K photograph has 33 million."""
MIN_SIDE, MAX_ASPECT = 2, 200
"""Of pictures that can be judged: least side in pixels, and how many times longer than wide at most."""


def check_size(height: int, width: int, origin: str | None = None) -> None:
    """Refuse pictures that no judge can look at.

    Raises:
        InputError: under `MIN_SIDE` pixels, or narrower than `MAX_ASPECT` allows.
    """
    if min(height, width) < MIN_SIDE or max(height, width) / min(height, width) > MAX_ASPECT:
        raise InputError(f"{origin or 'picture'}: {width}x{height} pixels is too small or too narrow to judge")


_unique = itertools.count()


@dataclass(frozen=True, eq=False)
class Media:
    """One picture (F = 1) or video.

    Attributes:
        frames: float (F, 3, H, W) in [0, 1]; may require gradients.
        fps: frames per second of a video, None for a picture.
        origin: where it came from (a path, a generator), for messages only.
    """

    frames: Tensor
    fps: float | None = None
    origin: str | None = None

    def __post_init__(self) -> None:
        f = self.frames
        if f.ndim != 4 or f.shape[1] != 3 or 0 in f.shape:
            raise InputError(f"{self.origin or 'media'}: needs frames of shape (F, 3, H, W), got {tuple(f.shape)}")
        if not f.is_floating_point():
            raise InputError(f"{self.origin or 'media'}: needs float pixels in [0, 1], got {f.dtype}; use from_numpy")

    @property
    def num_frames(self) -> int:
        return self.frames.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.frames.shape[2], self.frames.shape[3]

    @cached_property
    def key(self) -> str:
        """Equal for equal pixels; unique where a gradient is wanted, so that no such picture is ever merged."""
        if self.frames.requires_grad:
            return f"grad-{next(_unique)}"
        content = self.frames.detach().cpu().flatten().contiguous()  # in this order: of a lone pixel all strides pass
        digest = hashlib.blake2b(content.view(torch.uint8).numpy().tobytes(), digest_size=16)
        digest.update(f"{tuple(self.frames.shape)}{content.dtype}".encode())
        return digest.hexdigest()

    @classmethod
    def from_tensor(cls, pixels: Tensor, *, fps: float | None = None, origin: str | None = None) -> Media:
        """From float (C, H, W) or (F, C, H, W) in [0, 1]. The gradient is kept.

        Raises:
            InputError: wrong shape or type, values outside [0, 1] by more than 1e-3, or NaN.
        """
        frames = pixels[None] if pixels.ndim == 3 else pixels
        media = cls(frames, fps, origin)
        low, high = float(frames.detach().min()), float(frames.detach().max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise InputError(f"{origin or 'tensor'}: pixels must lie in [0, 1], found [{low:.3g}, {high:.3g}]")
        return media

    @classmethod
    def from_numpy(cls, pixels: NDArray[Any], *, fps: float | None = None, origin: str | None = None) -> Media:
        """From uint8 0..255 or float 0..1, shape (H, W, 3), (H, W) or (F, H, W, 3)."""
        x = np.asarray(pixels)
        if x.ndim == 2:
            x = np.repeat(x[..., None], 3, -1)
        if x.ndim == 3:
            x = x[None]
        if x.ndim != 4 or x.shape[-1] != 3:
            raise InputError(f"{origin or 'array'}: needs shape (H, W, 3) or (F, H, W, 3), got {np.shape(pixels)}")
        scaled = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)
        frames = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
        return cls.from_tensor(frames, fps=fps, origin=origin)

    @classmethod
    def from_pil(cls, image: PilImage, *, origin: str | None = None) -> Media:
        """From a PIL picture of any mode but `F`. Transparency is laid on white; EXIF rotation is applied."""
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise InputError(f"{origin or 'picture'}: its mode F has no range; scale it to [0, 1] and use from_numpy")
        if image.mode.startswith("I"):  # 16 bits of grey, which PIL would cut at 255
            return cls.from_numpy(np.asarray(image).astype(np.float32) / 65535, origin=origin)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            image = Image.alpha_composite(white, rgba)
        return cls.from_numpy(np.asarray(image.convert("RGB")), origin=origin)

    @classmethod
    def open(cls, source: str | Path | BinaryIO, *, origin: str | None = None) -> Media:
        """Read a PNG, JPEG or WebP file, or its bytes in an open one.

        Raises:
            InputError: missing, truncated, not a picture, or over `MAX_PIXELS`.
        """
        from PIL import Image, UnidentifiedImageError

        origin = origin or str(source)
        too_large = f"{origin}: over the limit of {MAX_PIXELS:,} pixels"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                opened = Image.open(source, formats=("PNG", "JPEG", "WEBP"))
            with opened as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(f"{too_large}: {image.width}x{image.height}")
                image.load()
                return cls.from_pil(image, origin=origin)
        except FileNotFoundError:
            raise InputError(f"{origin}: no such file") from None
        except UnidentifiedImageError:
            raise InputError(f"{origin}: not a PNG, JPEG or WebP picture") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise InputError(too_large) from None
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{origin}: unreadable or truncated picture ({error})") from None

    def to_bytes(self) -> Tensor:
        """uint8 (F, 3, H, W) in main memory, a quarter of the size."""
        return (self.frames.detach().float().clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu()

    @classmethod
    def from_bytes(cls, frames: Tensor, *, origin: str | None = None) -> Media:
        """What `to_bytes` gave: uint8 (F, 3, H, W)."""
        return cls(frames.float() / 255, origin=origin)

    def to_numpy(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) for a picture, (F, H, W, 3) for a video."""
        out = self.to_bytes().permute(0, 2, 3, 1).numpy()
        return out[0] if self.num_frames == 1 else out

    def to_pil(self) -> PilImage:
        """The picture (a video's first frame) as PIL."""
        from PIL import Image

        x = self.to_numpy()
        return Image.fromarray(x if x.ndim == 3 else x[0])


class Packed(Sequence[Media]):
    """Pictures of one size that wait as bytes, uint8 (N, 3, H, W): a quarter of the memory of `Media`."""

    def __init__(self, frames: Tensor) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> Media: ...
    @overload
    def __getitem__(self, index: slice) -> list[Media]: ...
    def __getitem__(self, index: int | slice) -> Media | list[Media]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Media.from_bytes(self.frames[index][None])


Part = str | Media
Dialog = tuple[Part, ...]
"""What a VLM is asked: texts and media in order."""


def stack_images(media: Sequence[Media]) -> Tensor:
    """(B, 3, H, W) from pictures of one size."""
    return torch.cat([m.frames[:1] for m in media])
