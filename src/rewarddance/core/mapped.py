"""Pixels in files that are mapped into memory: banks of clips. A step reads only a few of them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rewarddance.core.disk import writing
from rewarddance.core.errors import RunError
from rewarddance.core.media import Media
from rewarddance.core.parallel import all_reduce_sum, barrier, is_leader


def map_bytes(path: Path, shape: Sequence[int], new: bool = False) -> Tensor:
    """A uint8 tensor whose memory is a file. Writing into it writes the file.

    Args:
        new: make the file anew, filled with zeros.

    Raises:
        RunError: the file is missing or has another size, or the disk has no room for it.
    """
    size = math.prod(shape)
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a tensor may still be mapped to the old file
        with writing(path), path.open("wb") as file:
            try:
                file.truncate(size)
                if size and hasattr(os, "posix_fallocate"):  # a write to a sparse file on a full disk ends in SIGBUS
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                path.unlink()
                raise
    if not path.is_file() or path.stat().st_size != size:
        raise RunError(f"{path}: missing or incomplete; the clips that this run keeps on disk were there")
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8).view(*shape)


def gather_media(media: Iterable[Media], rows: Sequence[int], num: int, shape: tuple[int, ...], path: Path) -> Tensor:
    """All `num` samples of all processes as bytes: pictures in memory, clips in a mapped file. A collective.

    Args:
        media: this process's samples; they are taken one by one.
        rows: their places.
        shape: of one sample, (F, 3, H, W).
        path: the file for clips. All processes must see it.

    Returns:
        uint8 (num, 3, H, W) of pictures, (num, F, 3, H, W) of clips.
    """
    if shape[0] == 1:
        everything = torch.zeros(num, *shape[1:], dtype=torch.uint8)
        for row, item in zip(rows, media, strict=True):
            everything[row] = item.to_bytes()[0]
        return all_reduce_sum(everything)
    if is_leader():
        map_bytes(path, (num, *shape), new=True)
    barrier()
    mapped = map_bytes(path, (num, *shape))
    for row, item in zip(rows, media, strict=True):
        mapped[row] = item.to_bytes()
    barrier()
    return mapped
