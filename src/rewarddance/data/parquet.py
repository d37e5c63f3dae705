"""Parquet files of records: written group by group, and read back as lazy sequences.

A split is one file, `train.parquet`, or shards beside each other, `train-00000-of-00003.parquet` and so on. Readers
take the path of the one file for both. `RecordTable` gives `PreferenceRecord`s for training, one for each row and
criterion; `voted_records` gives rows with their votes. The columns are those of `data.schema`.
"""

from __future__ import annotations

import bisect
import io
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import PreferenceRecord
from rewarddance.data.schema import choice_of, migrate, png_bytes, row_of, voted
from rewarddance.data.shards import split_files, write_rows, write_shards
from rewarddance.data.votes import VERSION, VotedRecord

__all__ = ["RecordTable", "png_bytes", "row_of", "split_files", "voted_records", "write_rows", "write_shards"]

KEEP_BYTES = 1 << 30
"""Bytes of decoded pictures that an open file keeps in memory."""
KEEP_GROUPS = 4
"""Row groups of encoded pictures that an open file keeps in memory."""


FILES = ("images", "clips")
"""Columns of encoded files."""


class _Pictures:
    """Decoded pictures and clips of a split by row. It reads row groups from the disk and keeps the latest pictures.

    Several threads may call it; a lock serves them one after the other.
    """

    def __init__(self, files: Sequence[pq.ParquetFile], name: str, keep_bytes: int) -> None:
        self.files, self.name, self.keep_bytes = files, name, keep_bytes
        self._places = [(file, g) for file in files for g in range(file.metadata.num_row_groups)]
        sizes = [file.metadata.row_group(g).num_rows for file, g in self._places]
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._kept: OrderedDict[int, tuple[Media, ...]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def of(self, row: int, kinds: Sequence[str] | None = None) -> tuple[Media, ...]:
        """Pictures and clips of a row, in the order of their `kinds`; pictures only when None."""
        with self._lock:
            return self._of(row, kinds)

    def _of(self, row: int, kinds: Sequence[str] | None) -> tuple[Media, ...]:
        if row in self._kept:
            self._kept.move_to_end(row)
            return self._kept[row]
        origin = f"{self.name} row {row + 1}"
        stored = self._encoded(row)
        pictures, clips = (iter(stored.get(name) or ()) for name in ("images", "clips"))
        media = tuple(
            Media.open(io.BytesIO(next(clips)["bytes"]), origin=origin)
            if kind == "video"
            else Media.open_picture(io.BytesIO(next(pictures)["bytes"]), origin=origin)
            for kind in kinds or ["image"] * len(stored["images"])
        )
        self._kept[row] = media
        self._held += _size(media)
        while self._held > self.keep_bytes:
            self._held -= _size(self._kept.popitem(last=False)[1])
        return media

    def _encoded(self, row: int) -> dict[str, Any]:
        group = bisect.bisect_right(self._starts, row) - 1
        if group not in self._groups:
            file, group_of_file = self._places[group]
            names = [n for n in FILES if n in file.schema_arrow.names]
            self._groups[group] = file.read_row_group(group_of_file, columns=names)
            if len(self._groups) > KEEP_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return dict(self._groups[group].slice(row - self._starts[group], 1).to_pylist()[0])


class RecordTable(Sequence[PreferenceRecord]):
    """Some rows of a Parquet file as records. A record's pictures are read when the record is read.

    Args:
        light: all columns except the pictures, for these rows.
        rows: the indices of these rows in the file.
        pictures: shared by all tables of one file.
    """

    def __init__(self, light: pa.Table, rows: Sequence[int], pictures: _Pictures) -> None:
        self.light, self.rows, self.pictures = light, rows, pictures
        self.name = pictures.name

    @classmethod
    def open(cls, path: Path, keep_bytes: int = KEEP_BYTES) -> RecordTable:
        """Open a split of any size: one file, or its shards. Rows that nobody has judged yet are left out.

        Raises:
            InputError: missing, not Parquet, without the columns of a record, of a newer version, or with candidates
                whose files it does not hold.
        """
        files = _open(path)
        starts = itertools.accumulate((file.metadata.num_rows for file in files), initial=0)
        tables = [_light(file, path, start) for file, start in zip(files, starts, strict=False)]
        light = pa.concat_tables(tables, promote_options="default")
        rows = light.column("row").to_pylist()
        return cls(light.drop_columns("row"), rows, _Pictures(files, str(path), keep_bytes))

    def _get(self, index: int) -> PreferenceRecord:
        row = self.light.slice(index, 1).to_pylist()[0]
        truth, ratings = row.get("truth"), row.get("ratings")
        entries = row.get("media")
        media = self.pictures.of(self.rows[index], None if entries is None else [m["kind"] for m in entries])
        conditions = sum(m["role"] == "condition" for m in entries or ())
        # the source pictures of edits are not shown; the first frame of a clip is
        shown = media[-1] if conditions == 1 and media[0].is_clip else None
        return PreferenceRecord(
            row["id"],
            row["prompt"],
            media[: len(media) - conditions],
            tuple(choice_of(c) for c in row["choices"]),
            row.get("criterion") or "overall",
            row.get("source") or "",
            tuple(truth) if truth else None,
            tuple(ratings) if ratings else None,
            {g["name"]: g["value"] for g in row.get("groups") or ()},
            shown,
        )

    @property
    def are_clips(self) -> list[bool]:
        """Whether the first candidate of every record is a clip. Decodes none."""
        if "media" not in self.light.column_names:
            return [False] * len(self)
        return [bool(row) and row[0]["kind"] == "video" for row in self.light.column("media").to_pylist()]

    @property
    def prompts(self) -> list[str]:
        """Prompts of all records, without decoding a picture."""
        return list(self.light.column("prompt").to_pylist())

    @property
    def contents(self) -> list[tuple[str, tuple[str | None, ...]]]:
        """Prompt and hashes of the pictures of every record, without decoding a picture.

        Files of version 1 store no hashes; their rows count as different.
        """
        if "media" in self.light.column_names:
            media = self.light.column("media").to_pylist()
            files = [tuple(m["sha256"] for m in row) for row in media]
        else:
            files = [(str(row),) for row in self.rows]
        return list(zip(self.prompts, files, strict=True))

    @property
    def criteria(self) -> list[str]:
        """Criterion of every record, without decoding a picture."""
        if "criterion" not in self.light.column_names:
            return ["overall"] * len(self)
        return [c or "overall" for c in self.light.column("criterion").to_pylist()]

    @property
    def sources(self) -> list[str]:
        """Source of every record's pictures ("" if unknown), without decoding a picture."""
        if "source" not in self.light.column_names:
            return [""] * len(self)
        return [s or "" for s in self.light.column("source").to_pylist()]

    def group(self, name: str) -> list[str | None]:
        """Value of a group (or of `source`) for every record, None if it has none. Decodes no picture."""
        if name == "source":
            return [s or None for s in self.sources]
        if "groups" not in self.light.column_names:
            return [None] * len(self)
        rows = self.light.column("groups").to_pylist()
        return [{g["name"]: g["value"] for g in row or ()}.get(name) for row in rows]

    @property
    def choice_labels(self) -> list[list[float]]:
        """Labels of every record's choices, without decoding a picture."""
        return [[c["label"] for c in row] for row in self.light.column("choices").to_pylist()]

    @property
    def has_rationales(self) -> bool:
        """Whether any choice has a rationale."""
        return any(c.get("rationale") for row in self.light.column("choices").to_pylist() for c in row)

    @property
    def ratings(self) -> list[list[float] | None]:
        """Ratings of every record's pictures, None without any; no picture is decoded."""
        if "ratings" not in self.light.column_names:
            return [None] * len(self)
        return [list(row) if row else None for row in self.light.column("ratings").to_pylist()]

    @property
    def has_ratings(self) -> bool:
        """Whether every record has ratings."""
        return self._filled("ratings") == len(self)

    @property
    def has_truth(self) -> bool:
        """Whether any record has exact values (`truth`), as the embedded world's records have."""
        return self._filled("truth") > 0

    def _filled(self, name: str) -> int:
        return 0 if name not in self.light.column_names else len(self) - int(self.light.column(name).null_count)

    @property
    def labels(self) -> list[float]:
        """Labels of all choices of all records, without decoding a picture."""
        return [label for row in self.choice_labels for label in row]

    def __len__(self) -> int:
        return int(self.light.num_rows)

    @overload
    def __getitem__(self, index: int) -> PreferenceRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PreferenceRecord]: ...
    def __getitem__(self, index: int | slice) -> PreferenceRecord | Sequence[PreferenceRecord]:
        if isinstance(index, slice):
            return [self._get(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._get(index % len(self))

    def take(self, rows: Sequence[int]) -> RecordTable:
        """A table of some rows."""
        return RecordTable(self.light.take(pa.array(rows, pa.int64())), [self.rows[i] for i in rows], self.pictures)

    def spread(self, most: int) -> RecordTable:
        """A table of at most `most` rows, which are spread evenly over this one."""
        return self if len(self) <= most else self.take([i * len(self) // most for i in range(most)])

    def __iter__(self) -> Iterator[PreferenceRecord]:
        return (self[i] for i in range(len(self)))


def _size(media: Sequence[Media]) -> int:
    """Bytes of decoded pictures."""
    return sum(m.frames.nbytes for m in media)


def _open(path: Path) -> list[pq.ParquetFile]:
    """The Parquet files of a split.

    Raises:
        InputError: missing, or not Parquet.
    """
    paths = split_files(path)
    if not paths:
        raise InputError(f"{path}: no such file; `rewarddance data build` or `data import` writes one")
    try:
        return [pq.ParquetFile(p, memory_map=True) for p in paths]
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({error})") from None


def _light(file: pq.ParquetFile, path: Path, start: int) -> pa.Table:
    """All columns that training needs except the pictures. It has a row for each record and criterion.

    The column `row` is the record's row in the split; the first row of this file is row `start` of the split.

    Files of version 1 have the criterion, choices and ratings as columns; version 2 lists them by criterion.
    """
    names = file.schema_arrow.names
    old = _is_old(names, path)
    light = file.read(columns=[n for n in names if n not in (*FILES, "votes")])
    rows = pa.array(range(start, start + light.num_rows), pa.int64())
    if old:
        return light.append_column("row", rows)
    _check_rows(light, path, _stored_clips(file))
    listed = light.column("preferences").combine_chunks()
    parents = pc.list_parent_indices(listed)
    preferences = pc.list_flatten(listed)
    light = light.append_column("row", rows).drop_columns(["preferences", "version"]).take(parents)
    for name in ("criterion", "choices", "ratings"):
        light = light.append_column(name, pc.struct_field(preferences, name))
    return light


def _stored_clips(file: pq.ParquetFile) -> NDArray[np.int64]:
    """Number of clips whose files each row holds. Only their names are read."""
    if "clips" not in file.schema_arrow.names:
        return np.zeros(file.metadata.num_rows, np.int64)
    names = file.read(columns=["clips.list.element.path"]).column("clips")
    return np.asarray(pc.fill_null(pc.list_value_length(names), 0).to_numpy(), np.int64)


def _check_rows(light: pa.Table, path: Path, stored: NDArray[np.int64]) -> None:
    newest = pc.max(light.column("version")).as_py()
    if newest is not None and newest > VERSION:
        raise InputError(f"{path}: version {newest} of the schema; this is version {VERSION}, update rewarddance")
    media = light.column("media").combine_chunks()
    kinds = pc.struct_field(pc.list_flatten(media), "kind").to_numpy(zero_copy_only=False)
    parents = pc.list_parent_indices(media).to_numpy()
    clips, systems = (np.bincount(parents[kinds == k], minlength=light.num_rows) for k in ("video", "none"))
    others = int(((clips > stored) | (systems > 0)).sum())
    if others:
        raise InputError(
            f"{path}: {others} of {light.num_rows} records are of clips or of systems without pictures, and the data "
            "do not hold their files, which training and scoring need (`data import --store-clips` keeps clips); "
            "`data stats`, `data split` and `data export` read them"
        )


def stored_rows(path: Path, pictures: bool = True) -> Iterator[dict[str, Any]]:
    """Rows of a split in today's version of the schema, read group by group.

    Args:
        pictures: also the encoded files. Files of version 1 are read with them in any case.

    Raises:
        InputError: missing, not Parquet, without the columns of a record, or of a newer version.
    """
    for file in _open(path):
        names = file.schema_arrow.names
        old = _is_old(names, path)
        columns = names if pictures or old else [n for n in names if n not in FILES]
        for group in range(file.metadata.num_row_groups):
            for row in file.read_row_group(group, columns=columns).to_pylist():
                yield migrate(row)


def voted_records(path: Path, pictures: bool = True) -> Iterator[VotedRecord]:
    """Records of a split with their votes; with `pictures` also the encoded files, as `MediaRef.data`.

    Raises:
        InputError: as `stored_rows`.
    """
    return map(voted, stored_rows(path, pictures))


def _is_old(names: Sequence[str], path: Path) -> bool:
    """Whether these are the columns of version 1.

    Raises:
        InputError: they are the columns of no version.
    """
    old = "preferences" not in names
    missing = [n for n in ("id", "prompt", "images", "choices" if old else "media") if n not in names]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; import the file with `rewarddance data import`")
    return old


def count_rows(path: Path) -> int:
    """Number of rows of a split."""
    return sum(file.metadata.num_rows for file in _open(path))
