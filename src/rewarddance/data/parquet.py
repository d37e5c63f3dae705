"""Preference records as Parquet that `datasets.load_dataset` reads, and back as a lazy sequence.

Columns: id, prompt, criterion, source, images (list of encoded pictures), choices (list of first, second, label,
rationale), truth (list of exact values, or null), ratings (list of 1..5, or null), groups (list of name, value).
"""

from __future__ import annotations

import bisect
import io
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.preferences import Choice, PreferenceRecord

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_CHOICE = pa.struct(
    [("first", pa.int32()), ("second", pa.int32()), ("label", pa.float32()), ("rationale", pa.string())]
)
_GROUP = pa.struct([("name", pa.string()), ("value", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("criterion", pa.string()),
        ("source", pa.string()),
        ("images", pa.list_(_IMAGE)),
        ("choices", pa.list_(_CHOICE)),
        ("truth", pa.list_(pa.float32())),
        ("ratings", pa.list_(pa.float32())),
        ("groups", pa.list_(_GROUP)),
    ],
    metadata={"huggingface": b'{"info": {"features": {"images": {"feature": {"_type": "Image"}, "_type": "List"}}}}'},
)
"""The metadata makes `datasets.load_dataset` decode pictures."""


def png_bytes(media: Media) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    media.to_pil().save(buffer, "PNG")
    return buffer.getvalue()


def row_of(record: PreferenceRecord, encoded: Sequence[bytes] | None = None) -> dict[str, Any]:
    """A Parquet row of a record. With `encoded` it holds these files instead of new PNGs."""
    files = encoded if encoded is not None else [png_bytes(m) for m in record.media]
    return {
        "id": record.record_id,
        "prompt": record.prompt,
        "criterion": record.criterion,
        "source": record.source,
        "images": [{"bytes": b, "path": None} for b in files],
        "choices": [
            {"first": c.first, "second": c.second, "label": c.label, "rationale": c.rationale} for c in record.choices
        ],
        "truth": None if record.truth is None else list(record.truth),
        "ratings": None if record.ratings is None else list(record.ratings),
        "groups": [{"name": k, "value": v} for k, v in record.groups.items()],
    }


GROUP_BYTES = 4 << 20
GROUP_ROWS = 256
"""A row group ends when it reaches one of these limits. Reading one record reads its whole group."""


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Write rows to one Parquet file, first under a temporary name. Returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count, num_bytes = path.with_name(f".{path.name}.partial"), 0, 0
    waiting: list[dict[str, Any]] = []
    try:
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for row in rows:
                waiting.append(row)
                count += 1
                num_bytes += sum(len(image["bytes"]) for image in row["images"])
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


KEEP_BYTES = 1 << 30
"""Bytes of decoded pictures that an open file keeps in memory."""
KEEP_GROUPS = 4
"""Row groups of encoded pictures that an open file keeps in memory."""


class _Pictures:
    """Decoded pictures of a Parquet file by row. It reads row groups from the disk and keeps the latest pictures.

    Several threads may call it at the same time.
    """

    def __init__(self, file: pq.ParquetFile, name: str, keep_bytes: int) -> None:
        self.file, self.name, self.keep_bytes = file, name, keep_bytes
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._groups: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._decoded: OrderedDict[int, tuple[Media, ...]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def of(self, row: int) -> tuple[Media, ...]:
        with self._lock:
            if row in self._decoded:
                self._decoded.move_to_end(row)
                return self._decoded[row]
            origin = f"{self.name} row {row + 1}"
            media = tuple(Media.open(io.BytesIO(x["bytes"]), origin=origin) for x in self._encoded(row))
            self._decoded[row] = media
            self._num_bytes += _size(media)
            while self._num_bytes > self.keep_bytes:
                self._num_bytes -= _size(self._decoded.popitem(last=False)[1])
            return media

    def _encoded(self, row: int) -> list[dict[str, Any]]:
        group = bisect.bisect_right(self._starts, row) - 1
        if group not in self._groups:
            self._groups[group] = self.file.read_row_group(group, columns=["images"]).column("images")
            if len(self._groups) > KEEP_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return list(self._groups[group][row - self._starts[group]].as_py())


class RecordTable(Sequence[PreferenceRecord]):
    """Some rows of a Parquet file as records.

    A record's pictures are read and decoded when the record is read. Properties of the table decode no picture.

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
        """Open one file of any size.

        Raises:
            InputError: missing, not Parquet, or without the columns of a preference record.
        """
        try:
            file = pq.ParquetFile(path, memory_map=True)
            names = file.schema_arrow.names
            missing = [n for n in ("id", "prompt", "images", "choices") if n not in names]
            if missing:
                raise InputError(
                    f"{path}: no column {', '.join(missing)}; import the file with `rewarddance data import`"
                )
            light = file.read(columns=[n for n in names if n != "images"])
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; `rewarddance data build` or `data import` writes one") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: not a Parquet file ({error})") from None
        return cls(light, range(light.num_rows), _Pictures(file, str(path), keep_bytes))

    def _get(self, index: int) -> PreferenceRecord:
        row = self.light.slice(index, 1).to_pylist()[0]
        choices = tuple(Choice(c["first"], c["second"], c["label"], c.get("rationale")) for c in row["choices"])
        truth, ratings = row.get("truth"), row.get("ratings")
        return PreferenceRecord(
            row["id"],
            row["prompt"],
            self.pictures.of(self.rows[index]),
            choices,
            row.get("criterion") or "overall",
            row.get("source") or "",
            tuple(truth) if truth else None,
            tuple(ratings) if ratings else None,
            {g["name"]: g["value"] for g in row.get("groups") or ()},
        )

    @property
    def prompts(self) -> list[str]:
        """Prompts of all records."""
        return self._values("prompt")

    def _values(self, name: str) -> list[Any]:
        """A column; None for all records where the file does not have it."""
        return list(self.light.column(name).to_pylist()) if name in self.light.column_names else [None] * len(self)

    @property
    def criteria(self) -> list[str]:
        """Criterion of every record."""
        return [c or "overall" for c in self._values("criterion")]

    @property
    def sources(self) -> list[str]:
        """Source of every record's pictures, "" if unknown."""
        return [s or "" for s in self._values("source")]

    def group(self, name: str) -> list[str | None]:
        """Value of a group (or of `source`) for every record, None if it has none."""
        if name == "source":
            return [s or None for s in self.sources]
        return [{g["name"]: g["value"] for g in row or ()}.get(name) for row in self._values("groups")]

    @property
    def choice_labels(self) -> list[list[float]]:
        """Labels of every record's choices."""
        return [[c["label"] for c in row] for row in self._values("choices")]

    @property
    def has_rationales(self) -> bool:
        """Whether any choice has a rationale."""
        return any(c.get("rationale") for row in self._values("choices") for c in row)

    @property
    def has_ratings(self) -> bool:
        """Whether every record has ratings."""
        return all(self._values("ratings"))

    @property
    def has_truth(self) -> bool:
        """Whether any record has exact values (`truth`), as the embedded world's records have."""
        return any(self._values("truth"))

    @property
    def labels(self) -> list[float]:
        """Labels of all choices of all records."""
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
        light = self.light.take(pa.array(rows, pa.int64()))  # the type is needed where there are no rows
        return RecordTable(light, [self.rows[i] for i in rows], self.pictures)


def _size(media: Sequence[Media]) -> int:
    """Bytes of decoded pictures."""
    return sum(m.frames.nbytes for m in media)
