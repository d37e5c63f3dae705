"""Pictures and videos as one type: float pixels in [0, 1], shape (F, C, H, W), gradients kept."""

from __future__ import annotations

import hashlib
import itertools
import math
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

from rewarddance.core.clips import SUFFIXES, contact_sheet, is_container, read_clip, read_gif, write_clip
from rewarddance.core.errors import InputError
from rewarddance.core.pictures import FORMATS, as_rgb, open_image, upright

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

MAX_PIXELS = 64_000_000
"""Larger files are refused as decompression bombs; an 8K photograph has 33 million."""
ANIMATED = ("PNG", "WEBP", "AVIF", "GIF")
"""Formats whose files may be animations. Further pages of a TIFF or JPEG file are ignored."""
_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
"""First bytes of PNG, JPEG, GIF and TIFF. WEBP and AVIF need later bytes too (`_names_picture`)."""
MIN_SIDE, MAX_ASPECT = 2, 200
"""Limits of pictures that can be judged: shortest side in pixels, and longest side divided by shortest."""


def check_size(height: int, width: int, origin: str | None = None) -> None:
    """Check that a judge can look at a picture of this size.

    Raises:
        InputError: a side under `MIN_SIDE` pixels, or a longer shape than `MAX_ASPECT` allows.
    """
    if min(height, width) < MIN_SIDE or max(height, width) / min(height, width) > MAX_ASPECT:
        raise InputError(f"{origin or 'picture'}: {width}x{height} pixels is too small or too narrow to judge")


def _head(source: str | Path | BinaryIO) -> bytes:
    """The first 12 bytes of a file."""
    if isinstance(source, str | Path):
        with open(source, "rb") as file:
            return file.read(12)
    source.seek(0)
    head = source.read(12)
    source.seek(0)
    return head


def _names_picture(head: bytes) -> bool:
    """Whether the first 12 bytes of a file are those of one of `FORMATS`."""
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    avif = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")
    return webp or avif or head.startswith(_BEGINNINGS)


_unique = itertools.count()


def _digest(frames: Tensor, more: str) -> str:
    """A hash of pixels, shape and type."""
    # flatten before contiguous: a single pixel counts as contiguous with any strides
    content = frames.detach().cpu().flatten().contiguous()
    digest = hashlib.blake2b(content.view(torch.uint8).numpy().tobytes(), digest_size=16)
    digest.update(f"{tuple(frames.shape)}{content.dtype}{more}".encode())
    return digest.hexdigest()


def _few(frames: Tensor) -> tuple[Any, ...]:
    """Shape, dtype and at least 16 of the pixels' values (fewer if there are fewer)."""
    content = frames.detach().flatten()
    return (tuple(frames.shape), str(frames.dtype), *content[:: max(1, len(content) // 16)].tolist())


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
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise InputError(f"{self.origin or 'media'}: {self.fps} frames per second; needs a number above 0")

    @property
    def num_frames(self) -> int:
        return self.frames.shape[0]

    @property
    def is_clip(self) -> bool:
        """Whether it is a clip; a clip may have a single frame."""
        return self.num_frames > 1 or self.fps is not None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.frames.shape[2], self.frames.shape[3]

    @cached_property
    def key(self) -> str:
        """A string that is equal for equal pixels and frame rates, and unique for pixels that require a gradient.

        So two pictures with gradients are never taken for one.
        """
        if self.frames.requires_grad:
            return f"grad-{next(_unique)}"
        # of two equal clips, the faster one may be the better
        return _digest(self.frames, "" if self.fps is None else f" {self.fps}")

    def frame_key(self, index: int) -> str:
        """As `key`, of one frame. A frame of a clip and a picture with the same pixels have the same key."""
        if not self.is_clip:
            return self.key
        if self.frames.requires_grad:
            return f"{self.key}-{index}"
        if index not in self._frame_keys:
            self._frame_keys[index] = _digest(self.frames[index : index + 1], "")
        return self._frame_keys[index]

    @cached_property
    def _frame_keys(self) -> dict[int, str]:
        return {}

    @cached_property
    def sketch(self) -> tuple[Any, ...]:
        """Shape and a few pixels: equal for equal pictures and different for most others. Much cheaper than `key`."""
        if self.frames.requires_grad:
            return (next(_unique),)
        return (*_few(self.frames), self.fps)

    def frame_sketch(self, index: int) -> tuple[Any, ...]:
        """As `sketch`, of one frame."""
        if not self.is_clip:
            return self.sketch
        if self.frames.requires_grad:
            return (*self.sketch, index)
        return (*_few(self.frames[index : index + 1]), None)

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
        image = upright(image)
        if image.mode == "F":
            raise InputError(f"{origin or 'picture'}: its mode F has no range; scale it to [0, 1] and use from_numpy")
        if image.mode.startswith("I"):  # 16 bits of grey keep their precision
            return cls.from_numpy(np.asarray(image).astype(np.float32) / 65535, origin=origin)
        return cls.from_numpy(np.asarray(as_rgb(image)), origin=origin)

    @classmethod
    def open(cls, source: str | Path | BinaryIO, *, origin: str | None = None) -> Media:
        """Read a picture of one of `FORMATS` or a clip (MP4, WebM, animated GIF), or its bytes in an open file.

        Raises:
            InputError: missing, a folder, truncated, neither a picture nor a clip, an animation of another format, over
                `MAX_PIXELS`, or a clip that `core.clips` cannot read (for example, because the extra `video` is
                missing).
        """
        return cls._open(source, origin or str(source), clips=True)

    @classmethod
    def open_picture(cls, source: str | Path | BinaryIO, *, origin: str | None = None) -> Media:
        """Read a picture of one of `FORMATS`, or its bytes in an open file. No clip is decoded.

        Raises:
            InputError: as `open`, or the file is a clip or an animation.
        """
        return cls._open(source, origin or str(source), clips=False)

    @classmethod
    def _open(cls, source: str | Path | BinaryIO, origin: str, clips: bool) -> Media:
        from PIL import Image, UnidentifiedImageError

        too_large = f"{origin}: over the limit of {MAX_PIXELS:,} pixels"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks on files that it then cannot read
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                opened = open_image(source)
            with opened as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(f"{too_large}: {image.width}x{image.height}")
                num_frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
                if num_frames > 1 and image.format == "GIF" and clips:
                    return cls._from_clip(read_gif(image, origin), origin)
                if num_frames > 1:
                    raise InputError(f"{origin}: an animation of {num_frames} frames, not a picture")
                image.load()
                return cls.from_pil(image, origin=origin)
        except FileNotFoundError:
            raise InputError(f"{origin}: no such file") from None
        except IsADirectoryError:
            raise InputError(f"{origin}: a folder, not a picture") from None
        except UnidentifiedImageError:
            head = _head(source)
            if is_container(head) and clips:
                return cls._from_clip(read_clip(source, origin), origin)
            if is_container(head):
                raise InputError(f"{origin}: a clip, not a picture") from None
            if _names_picture(head):
                raise InputError(f"{origin}: unreadable or truncated picture") from None
            raise InputError(f"{origin}: not a picture ({', '.join(FORMATS)})") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise InputError(too_large) from None
        except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # RuntimeError: Pillow's AVIF decoder
            raise InputError(f"{origin}: unreadable or truncated picture ({error})") from None

    @classmethod
    def _from_clip(cls, clip: tuple[NDArray[np.uint8], float], origin: str) -> Media:
        pixels, fps = clip
        return cls.from_numpy(pixels, fps=fps if len(pixels) > 1 else None, origin=origin)

    def save(self, path: str | Path, *, lossless: bool = False) -> None:
        """Write a picture as PNG, or a clip as MP4, WebM or GIF (with the extra `video`), by the path's ending.

        Args:
            lossless: for clips, keep every value; not every player shows such files.

        Raises:
            InputError: the ending names no such format, a clip has no `fps`, or the extra is missing.
        """
        target = Path(path)
        if target.suffix.lower() == ".png" and self.num_frames == 1:
            self.to_pil().save(target, "PNG")
        elif target.suffix.lower() == ".png":
            raise InputError(f"{path}: a clip of {self.num_frames} frames; save it as {', '.join(SUFFIXES)}")
        elif self.fps is None:
            raise InputError(f"{path}: a clip is saved with its frames per second; this one has none")
        else:
            write_clip(self.to_bytes().permute(0, 2, 3, 1).numpy(), self.fps, target, lossless)

    def contact_sheet(self, columns: int | None = None) -> PilImage:
        """All frames in one picture, in reading order."""
        return contact_sheet(self.to_bytes().permute(0, 2, 3, 1).numpy(), columns)

    def to_bytes(self) -> Tensor:
        """uint8 (F, 3, H, W) in main memory: a quarter of the bytes of fp32."""
        return (self.frames.detach().float().clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu()

    @classmethod
    def from_bytes(cls, frames: Tensor, *, fps: float | None = None, origin: str | None = None) -> Media:
        """The inverse of `to_bytes`, from uint8 (F, 3, H, W)."""
        return cls(frames.float() / 255, fps, origin)

    def to_numpy(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) for a picture, (F, H, W, 3) for a video."""
        out = self.to_bytes().permute(0, 2, 3, 1).numpy()
        return out[0] if self.num_frames == 1 else out

    def to_pil(self) -> PilImage:
        """The picture (a video's first frame) as PIL."""
        from PIL import Image

        x = self.to_numpy()
        return Image.fromarray(x if x.ndim == 3 else x[0])


class StoredMedia(Sequence[Media]):
    """Pictures of one size, stored as bytes: a quarter of the memory of a list of `Media`.

    Args:
        frames: uint8 (N, 3, H, W) of pictures or (N, F, 3, H, W) of clips, in memory or in a mapped file
            (`core/mapped.py`).
        fps: frames per second of clips.
    """

    def __init__(self, frames: Tensor, fps: float | None = None, origin: str | None = None) -> None:
        self.frames, self.fps, self.origin = frames, fps, origin

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> Media: ...
    @overload
    def __getitem__(self, index: slice) -> list[Media]: ...
    def __getitem__(self, index: int | slice) -> Media | list[Media]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        frames = self.frames[index]
        return Media.from_bytes(frames if frames.ndim == 4 else frames[None], fps=self.fps, origin=self.origin)


@dataclass(frozen=True)
class Reply:
    """The assistant's answer at this place of a dialog; it ends an example in context."""

    text: str


DialogPart = str | Media | Reply
Dialog = tuple[DialogPart, ...]
"""The input of a VLM: texts, media and replies in order."""
