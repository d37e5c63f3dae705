"""Clips in and out: MP4 and WebM by PyAV (the extra `video`), animated GIF by Pillow, contact sheets.

Every file is read with bounded memory, and a bad one gives one line. Only files and bytes are opened, never addresses,
and only by the demuxer that their first bytes name.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rewarddance.core.errors import InputError
from rewarddance.core.pictures import open_image, unreadable

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

MAX_FRAMES = 1024
"""Longer clips are refused; 34 seconds at 30 frames a second."""
MAX_CLIP_PIXELS = 128_000_000
"""Pixels of all frames together; 121 frames of 1280x720 have 112 million. As float they take 12 bytes each."""
SUFFIXES = (".mp4", ".webm", ".gif")
"""Endings of the files that clips are saved to."""
MAX_GIF_FPS = 50.0
"""Players show faster GIFs at ten frames a second."""
SLOW_GIF_SECONDS = 0.1
"""How long players show a frame that has no duration, or one under 1 / `MAX_GIF_FPS`."""
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")
"""Kinds of the MP4 container that hold pictures."""
_UNEVEN = 0.1
"""Share of a frame's duration by which time stamps may be wrong, in addition to their own resolution."""


def is_container(head: bytes) -> bool:
    """Whether the first 12 bytes of a file are those of a container of clips (MP4 and MOV, WebM, Matroska)."""
    return _demuxer(head) is not None


def _demuxer(head: bytes) -> str | None:
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        return None
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    return "matroska" if head[:4] == b"\x1a\x45\xdf\xa3" else None


def need_pyav(origin: str) -> ModuleType:
    """PyAV.

    Raises:
        InputError: it is missing; begins with `origin`.
    """
    try:
        return import_module("av")
    except ImportError:
        raise InputError(f"{origin}: clips need PyAV; pip install 'rewarddance[video]'") from None


def _check_amount(num: int, height: int, width: int, origin: str) -> None:
    if num > MAX_FRAMES:
        raise InputError(f"{origin}: over the limit of {MAX_FRAMES:,} frames; cut the clip, or take every n-th frame")
    if num * height * width > MAX_CLIP_PIXELS:
        raise InputError(
            f"{origin}: {num} frames of {width}x{height} are over the limit of {MAX_CLIP_PIXELS:,} pixels; scale the "
            "clip down or cut it"
        )


def read_clip(source: str | Path | BinaryIO, origin: str) -> tuple[NDArray[np.uint8], float]:
    """Decode an MP4 or WebM file.

    Returns:
        uint8 (F, H, W, 3), and frames per second.

    Raises:
        InputError: PyAV is missing; no video, no frame, an uneven frame rate, damaged, truncated, or over a limit.
    """
    av = need_pyav(origin)
    file = open(source, "rb") if isinstance(source, str | Path) else source  # noqa: SIM115
    try:
        head = file.read(12)
        file.seek(0)
        with av.open(file, format=_demuxer(head)) as container:
            return _decode(container, origin)
    except InputError:
        raise
    except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{origin}: unreadable or truncated clip ({reason})") from None
    finally:
        if file is not source:
            file.close()


def _decode(container: Any, origin: str) -> tuple[NDArray[np.uint8], float]:
    pictures = [s for s in container.streams.video if not s.disposition & _COVER]
    if not pictures:
        raise InputError(f"{origin}: no video in this file, or it is truncated")
    stream = pictures[0]
    height, width = stream.codec_context.height, stream.codec_context.width
    _check_amount(max(1, stream.frames), height, width, origin)
    frames: list[NDArray[np.uint8]] = []
    times: list[float] = []
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise InputError(f"{origin}: frame {len(frames)} is damaged")
        if (frame.height, frame.width) != (height, width):
            raise InputError(f"{origin}: frame {len(frames)} is {frame.width}x{frame.height}, not {width}x{height}")
        if frame.pts is None:
            raise InputError(f"{origin}: frame {len(frames)} has no time stamp")
        _check_amount(len(frames) + 1, height, width, origin)
        times.append(float(frame.pts * frame.time_base))
        pixels = frame.to_ndarray(format="rgb24")
        frames.append(np.rot90(pixels, round(frame.rotation / 90)) if frame.rotation else pixels)
    if not frames:
        raise InputError(f"{origin}: no frame in this file, or it is truncated")
    length = None if stream.duration is None else float(stream.duration * stream.time_base)
    if length is None and container.duration:
        length = container.duration / 1e6
    expected = float(stream.average_rate) if stream.average_rate else None
    fps = even_rate(times, float(stream.time_base), origin, expected)
    if len(frames) < stream.frames or (length and len(frames) < math.floor(0.9 * length * fps) - 1):
        total = stream.frames or round((length or 0) * fps)
        raise InputError(f"{origin}: truncated clip, {len(frames)} of {total} frames")
    return np.stack(frames), fps


_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC: the cover picture of a sound file


def even_rate(times: Sequence[float], resolution: float, origin: str, expected: float | None = None) -> float:
    """Frames per second of even time stamps.

    Args:
        times: seconds of every frame; resolution: of the time stamps, in seconds.
        expected: the rate that the file names. It is returned if the time stamps agree with it to 1%, or if there is
            only one frame.

    Raises:
        InputError: the gaps between frames differ.
    """
    if len(times) < 2:
        return expected or 1.0
    gaps = np.diff(times)
    usual = float(np.median(gaps))
    if usual <= 0 or float(abs(gaps - usual).max()) > _UNEVEN * usual + 1.01 * resolution:
        raise InputError(
            f"{origin}: variable frame rate (frames {gaps.min() * 1000:.0f} to {gaps.max() * 1000:.0f} ms apart); "
            "convert the clip to a constant one, for example with ffmpeg -vsync cfr"
        )
    fps = (len(times) - 1) / (times[-1] - times[0])
    return expected if expected and abs(expected / fps - 1) < 0.01 else fps


def moving_gif(source: str | Path | BinaryIO) -> bool:
    """Whether a file is a GIF with more than one frame, whatever its name says. No frame is decoded."""
    try:
        with open_image(source, ("GIF",)) as image:
            return bool(getattr(image, "is_animated", False))
    except unreadable():
        return False  # a later attempt to open it as a picture reports what is wrong


def read_gif(image: PilImage, origin: str) -> tuple[NDArray[np.uint8], float]:
    """All frames of an open animated GIF. A frame that is shown n times as long as the shortest is repeated n times.

    A frame without a duration, or with one under 1 / `MAX_GIF_FPS`, counts as `SLOW_GIF_SECONDS`, as players show it.

    Returns:
        uint8 (F, H, W, 3), transparency laid on white, and frames per second.

    Raises:
        InputError: over a limit, or durations that are no multiples of the shortest.
    """
    from PIL import Image

    frames: list[NDArray[np.uint8]] = []
    seconds: list[float] = []
    for k in range(getattr(image, "n_frames", 1)):
        _check_amount(k + 1, image.height, image.width, origin)
        image.seek(k)
        rgba = image.convert("RGBA")
        frames.append(np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")))
        given = float(image.info.get("duration", 0)) / 1000
        seconds.append(given if given >= 1 / MAX_GIF_FPS else SLOW_GIF_SECONDS)
    shortest = min(seconds)
    repeats = [round(s / shortest) for s in seconds]
    _check_amount(sum(repeats), image.height, image.width, origin)
    span, gaps = sum(seconds[:-1]), sum(repeats[:-1])
    even = span / gaps if gaps else shortest
    if any(abs(s - n * even) > 0.011 * max(1, n // 2) + _UNEVEN * even for s, n in zip(seconds, repeats, strict=True)):
        raise InputError(
            f"{origin}: variable frame rate ({shortest * 1000:.0f} to {max(seconds) * 1000:.0f} ms a frame); convert "
            "the clip to a constant one"
        )
    # Encoders write hundredths of a second: 8 frames a second become gaps of 12 and 13. A whole rate that explains the
    # sum is taken.
    whole = max(1, round(1 / even))
    fps = float(whole) if abs(gaps / whole - span) <= 0.0051 else 1 / even
    return np.repeat(np.stack(frames), repeats, axis=0), fps


def write_clip(pixels: NDArray[np.uint8], fps: float, path: Path, lossless: bool = False) -> None:
    """Encode a clip as MP4 (H.264), WebM (VP9) or GIF (256 colours), first under a temporary name.

    Args:
        pixels: uint8 (F, H, W, 3).
        lossless: keep every value; not every player shows such files. Refused for GIF.

    Raises:
        InputError: PyAV is missing, the ending is not in `SUFFIXES`, or the format cannot hold the rate.
    """
    content = encode_clip(pixels, fps, path, lossless)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def encode_clip(pixels: NDArray[np.uint8], fps: float, path: Path, lossless: bool = False) -> bytes:
    """The bytes of a file that `write_clip` writes; `path` names the format and, in messages, the clip.

    Raises:
        InputError: as `write_clip`.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: clips are saved as {', '.join(SUFFIXES)}; pictures of one frame as .png")
    if suffix == ".gif" and (lossless or fps > MAX_GIF_FPS):
        raise InputError(
            f"{path}: a GIF has 256 colours and at most {MAX_GIF_FPS:g} frames a second; use .mp4 or .webm"
        )
    height, width = pixels.shape[1:3]
    return encode_frames(pixels, (height, width), fps, _codec(suffix, lossless, bool(height % 2 or width % 2)), path)


@dataclass(frozen=True)
class Codec:
    """How a clip is encoded.

    Attributes:
        container: format of the file; flags: options of the container.
        name: of the encoder; pixels: its pixel format; options: of the encoder.
        bt709: convert to BT.709 in limited range, and say so in the file.
    """

    container: str
    name: str
    pixels: str
    options: Mapping[str, str]
    flags: Mapping[str, str] = field(default_factory=dict)
    bt709: bool = False


def _codec(suffix: str, lossless: bool, odd: bool) -> Codec:
    """Players want 4:2:0, which needs even sides."""
    subsampled = "yuv444p" if odd else "yuv420p"
    if suffix == ".mp4":
        if lossless:
            return Codec("mp4", "libx264rgb", "rgb24", {"crf": "0"})
        return Codec("mp4", "libx264", subsampled, {"crf": "12"})
    if suffix == ".webm":
        if lossless:
            return Codec("webm", "libvpx-vp9", "gbrp", {"lossless": "1"})
        return Codec("webm", "libvpx-vp9", subsampled, {"crf": "10", "b": "0"})
    return Codec("gif", "gif", "pal8", {})


def encode_frames(
    frames: Iterable[NDArray[np.uint8]], size: tuple[int, int], fps: float, codec: Codec, origin: str | Path
) -> bytes:
    """The bytes of a clip.

    Args:
        frames: uint8 (H, W, 3) each; size: (H, W).
        origin: what a message begins with.

    Raises:
        InputError: PyAV is missing, or the codec cannot hold this size or rate.
    """
    av = need_pyav(str(origin))
    rate, buffer = Fraction(fps).limit_denominator(1001), io.BytesIO()
    try:
        with av.open(buffer, "w", format=codec.container, options=dict(codec.flags)) as container:
            stream = container.add_stream(codec.name, rate=rate, options=dict(codec.options))
            stream.height, stream.width = size
            stream.pix_fmt = codec.pixels
            for k, frame in enumerate(_converted(av, frames, stream, codec)):
                frame.pts, frame.time_base = k, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        shape = f"{size[1]}x{size[0]}"
        raise InputError(f"{origin}: cannot encode {shape} at {fps:g} frames a second ({error})") from None
    return buffer.getvalue()


_BT709, _LIMITED_RANGE = 1, 1


def _converted(av: ModuleType, frames: Iterable[NDArray[np.uint8]], stream: Any, codec: Codec) -> Iterator[Any]:
    """Frames for the encoder: with a palette for GIF, as BT.709 if `codec.bt709`, otherwise as RGB."""
    rgb: Iterator[Any] = (av.VideoFrame.from_ndarray(np.ascontiguousarray(x), format="rgb24") for x in frames)
    if codec.container == "gif":
        return _paletted(av, rgb, stream)
    if not codec.bt709:
        return rgb
    context, colours = stream.codec_context, {"dst_colorspace": _BT709, "dst_color_range": _LIMITED_RANGE}
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    return (x.reformat(format=codec.pixels, **colours) for x in rgb)


def _paletted(av: ModuleType, frames: Iterator[Any], stream: Any) -> Iterator[Any]:
    """Frames with one palette of 256 colours that is made from all of them."""
    graph = av.filter.Graph()
    source = graph.add_buffer(template=None, width=stream.width, height=stream.height, format="rgb24", time_base=1)
    split, palette, paint = graph.add("split"), graph.add("palettegen"), graph.add("paletteuse", "dither=none")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(paint, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(paint, 0, 1)
    paint.link_to(sink)
    graph.configure()
    for k, frame in enumerate(frames):
        frame.pts, frame.time_base = k, Fraction(1)
        graph.push(frame)
    graph.push(None)
    while True:
        try:
            yield graph.pull()
        except (av.EOFError, av.BlockingIOError):
            return


def spread(num: int, most: int) -> list[int]:
    """Indices of at most `most` of `num` frames, evenly spread, first and last included.

    >>> spread(9, 5)
    [0, 2, 4, 6, 8]
    """
    return [int(i) for i in np.linspace(0, num - 1, min(num, most)).round()]


def contact_sheet(pixels: NDArray[np.uint8], columns: int | None = None, gap: int = 2) -> PilImage:
    """All frames in one picture, in reading order on a white background.

    Args:
        pixels: uint8 (F, H, W, 3).
        columns: frames in a row; the smallest square by default.
        gap: pixels between frames.
    """
    from PIL import Image

    num, height, width, _ = pixels.shape
    across = columns or math.ceil(math.sqrt(num))
    down = math.ceil(num / across)
    sheet = Image.new("RGB", (across * (width + gap) - gap, down * (height + gap) - gap), "white")
    for k, frame in enumerate(pixels):
        sheet.paste(Image.fromarray(frame), (k % across * (width + gap), k // across * (height + gap)))
    return sheet


def animation(clips: Sequence[NDArray[np.uint8]], fps: float, side: int = 320) -> bytes:
    """Clips of one size side by side as one animated WebP, so that they play in sync. Needs no PyAV.

    Args:
        clips: uint8 (F, H, W, 3) each.
        fps: frames per second; a page shows at most 50.
        side: a frame is shrunk to this width and height in pixels at most.
    """
    from PIL import Image

    frames = []
    for shown in zip(*clips, strict=True):
        parts = [Image.fromarray(x) for x in shown]
        for part in parts:
            part.thumbnail((side, side))
        white = np.full((parts[0].height, 2, 3), 255, np.uint8)
        frames.append(Image.fromarray(np.concatenate([x for p in parts for x in (white, np.asarray(p))][1:], 1)))
    small, buffer = frames[0].width <= 512, io.BytesIO()
    duration = max(20, round(1000 / fps))
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=duration, loop=0, lossless=small, quality=80
    )
    return buffer.getvalue()
