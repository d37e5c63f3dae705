"""Writing Parquet files of records, group by group and shard by shard, and finding the files of a split."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rewarddance.core.errors import InputError
from rewarddance.data.schema import SCHEMA, migrate

GROUP_BYTES = 4 << 20
GROUP_ROWS = 256
"""A row group ends when it reaches one of these limits. Reading one record reads its whole group."""
SHARD_BYTES = 512 << 20
"""A shard ends when its encoded pictures reach this size."""
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Write rows of any version to one Parquet file, first under a temporary name. Returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count, num_bytes = path.with_name(f".{path.name}.partial"), 0, 0
    waiting: list[dict[str, Any]] = []
    try:
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for row in rows:
                waiting.append(migrate(row))
                count += 1
                num_bytes += _picture_bytes(row)
                if len(waiting) == GROUP_ROWS or num_bytes >= GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
                    waiting, num_bytes = [], 0
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, SCHEMA))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
    return count


def _picture_bytes(row: dict[str, Any]) -> int:
    return sum(len(file["bytes"]) for file in (*row["images"], *(row.get("clips") or ())))


def write_shards(rows: Iterable[dict[str, Any]], path: Path, shard_bytes: int | None = None) -> list[Path]:
    """Write a split as one file at `path`, or as shards beside it where its pictures exceed `shard_bytes`.

    The files appear only when all of them are written, and they replace every earlier file of the split. If `rows`
    raises, nothing changes.
    """
    limit = SHARD_BYTES if shard_bytes is None else shard_bytes
    written: list[Path] = []
    remaining = iter(rows)
    try:
        while True:
            part = _until_full(remaining, limit)
            head = next(part, None)
            if head is None and written:
                break
            target = path.with_name(f".{path.stem}.{len(written):05d}.shard")
            write_rows(itertools.chain([] if head is None else [head], part), target)
            written.append(target)
            if head is None:
                break
    except BaseException:
        for shard in written:
            shard.unlink()
        raise
    for old in (path, *_shards(path)):
        old.unlink(missing_ok=True)
    num = len(written)
    names = [path] if num == 1 else [path.with_name(f"{path.stem}-{i:05d}-of-{num:05d}.parquet") for i in range(num)]
    for shard, name in zip(written, names, strict=True):
        shard.replace(name)
    return names


def _until_full(rows: Iterator[dict[str, Any]], limit: int) -> Iterator[dict[str, Any]]:
    """Rows until their pictures reach `limit` bytes; one row at least."""
    size = 0
    for row in rows:
        yield row
        size += _picture_bytes(row)
        if size >= limit:
            return


def _shards(path: Path) -> list[Path]:
    return sorted(p for p in path.parent.glob(f"{path.stem}-*.parquet") if _SHARD.search(p.name))


def split_files(path: Path) -> list[Path]:
    """The files of a split: `path` itself, or its shards in order; empty if there are none.

    Raises:
        InputError: some of its shards are missing, or there are shards of several writes.
    """
    if path.is_file():
        return [path]
    shards = _shards(path)
    for i, shard in enumerate(shards):
        match = _SHARD.search(shard.name)
        if match is None or (int(match[1]), int(match[2])) != (i, len(shards)):
            raise InputError(f"{path.parent}: the shards {path.stem}-*.parquet are not complete; import the data again")
    return shards
