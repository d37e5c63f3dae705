"""Rows of files: JSON lines, JSON arrays, CSV, Parquet, TFRecord. Files of any size are read row by row.

All yield (row number from 1, row or error text); a bad row does not end the file.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rewarddance.core.errors import InputError
from rewarddance.data.tfrecord import tfrecord_rows

Row = dict[str, Any] | str
"""A row, or the reason why it cannot be read."""
Rows = Iterator[tuple[int, Row]]

BATCH_ROWS = 32
"""Rows of a Parquet file that are in memory at once."""
_CHUNK = 1 << 20
_BETWEEN = re.compile(r"[\s,]*")


def jsonl_rows(path: Path) -> Rows:
    """Lines end with a line feed only: JSON text may hold other line separators (U+2028) inside strings."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, _object(json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")))
            except UnicodeDecodeError as error:
                yield number, f"not UTF-8 ({error.reason} at byte {error.start + 1})"
            except (ValueError, RecursionError) as error:
                yield number, f"not JSON ({error})"


def csv_rows(path: Path) -> Rows:
    """Rows of a CSV file with a header."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        try:
            columns = rows.fieldnames or ()
        except csv.Error as error:
            raise InputError(f"{path}: unreadable header ({error})") from None
        if any("\0" in c or not _is_utf8(c) for c in columns):
            raise InputError(f"{path}: the header is not UTF-8; save the file as UTF-8 with commas")
        separator = next((s for s in ";\t|" if len(columns) == 1 and s in columns[0]), None)
        if separator:
            raise InputError(
                f"{path}: one column, {columns[0]!r}; its separator is probably {separator!r}. "
                "Save the file with commas"
            )
        number = 0
        while True:
            number += 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, f"unreadable ({error})"
                continue
            if None in row:
                yield number, "more fields than columns"
            elif any(isinstance(v, str) and not _is_utf8(v) for v in row.values()):
                yield number, "not UTF-8"
            else:
                yield number, row


def array_rows(path: Path) -> Rows:
    """Objects of one JSON array, read piece by piece."""
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8-sig") as file:
        number = 0
        try:
            text = file.read(_CHUNK)
            place = _BETWEEN.match(text).end()  # type: ignore[union-attr]
            if text[place : place + 1] != "[":
                raise InputError(f"{path}: not a JSON array of objects")
            place += 1
            while True:
                place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
                if text[place : place + 1] == "]":
                    return
                try:
                    value, place = decoder.raw_decode(text, place)
                except ValueError as error:
                    more = file.read(max(_CHUNK, len(text) - place))
                    if not more:
                        raise InputError(f"{path}: not JSON after row {number} ({error})") from None
                    text, place = text[place:] + more, 0
                    continue
                number += 1
                yield number, _object(value)
        except (UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path}: not JSON after row {number} ({error})") from None


def object_rows(path: Path, key: str) -> Rows:
    """The objects that one JSON object lists under `key`. The file is read as a whole."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(rows, dict) or not isinstance(rows.get(key), list):
        raise InputError(f"{path}: not a JSON object with a list {key!r}")
    for number, row in enumerate(rows[key], 1):
        yield number, _object(row)


def parquet_rows(path: Path) -> Rows:
    """Rows of a Parquet file, `BATCH_ROWS` at a time."""
    try:
        file = pq.ParquetFile(path, memory_map=True)
        number = 0
        for batch in file.iter_batches(BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({error})") from None


def json_rows(path: Path) -> Rows:
    """Rows of a `.json` file: an array, an object that lists `pairs`, or one object a line."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        head = file.read(_CHUNK).lstrip()
    if head.startswith("["):
        return array_rows(path)
    first = head.split("\n", 1)[0].strip()
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return object_rows(path, "pairs") if head.startswith("{") else jsonl_rows(path)
    return object_rows(path, "pairs") if '"pairs"' in first[:40] else jsonl_rows(path)


ROWS_BY_SUFFIX: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
    ".tfrecord": tfrecord_rows,
}


def rows_of(path: Path) -> Rows:
    """Rows of a file by its ending, or of all Parquet or TFRecord files of a folder in the order of their names.

    Raises:
        InputError: no such file, or not one of `ROWS_BY_SUFFIX`.
    """
    if path.is_dir():
        return _folder_rows(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = ".tfrecord" if ".tfrecord" in path.name else path.suffix.lower()
    read = ROWS_BY_SUFFIX.get(suffix)
    if read is None:
        raise InputError(f"{path}: ends with none of {', '.join(ROWS_BY_SUFFIX)}; name its --format, or rename it")
    return read(path)


def _folder_rows(folder: Path) -> Rows:
    files = sorted(folder.glob("*.parquet")) or sorted(folder.glob("*.tfrecord*"))
    if not files:
        raise InputError(f"{folder}: holds no .parquet and no .tfrecord file")
    number = 0
    for file in files:
        for _, row in rows_of(file):
            number += 1
            yield number, row


def estimated_rows(path: Path) -> int:
    """About how many rows a file has, for a progress bar; 0 if that takes long to find out."""
    if path.is_dir():
        return sum(estimated_rows(p) for p in path.glob("*.parquet"))
    try:
        if path.suffix == ".parquet":
            return int(pq.ParquetFile(path).metadata.num_rows)
        if path.suffix in (".jsonl", ".csv"):
            with open(path, "rb") as file:
                return sum(block.count(b"\n") for block in iter(lambda: file.read(_CHUNK), b""))
        if path.suffix == ".json":
            lengths = [len(json.dumps(row)) for _, row in islice(rows_of(path), 20)]
            return round(path.stat().st_size * len(lengths) / sum(lengths)) if lengths else 0
    except (pa.ArrowInvalid, OSError):
        return 0
    return 0


def _object(value: Any) -> Row:
    if not isinstance(value, dict):
        return "not a JSON object"
    return value if _is_utf8(json.dumps(value, ensure_ascii=False)) else "half of a character (a lone surrogate)"


def _is_utf8(text: str) -> bool:
    """False if the text holds lone surrogates, which stand for bytes that are not UTF-8."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)
