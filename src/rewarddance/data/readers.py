"""Readers of preference files. They yield (row number from 1, row or error text); a bad row does not end the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rewarddance.core.errors import InputError

Format = Literal["jsonl", "csv", "imagereward"]
Row = dict[str, Any] | str
"""A row, or the reason why it cannot be read."""


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
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


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
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


def _imagereward(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: ImageReward's format is a JSON list of objects")
    for number, row in enumerate(rows, 1):
        yield number, _object(row)


def _object(value: Any) -> Row:
    if not isinstance(value, dict):
        return "not a JSON object"
    return value if _is_utf8(json.dumps(value, ensure_ascii=False)) else "half of a character (a lone surrogate)"


def _is_utf8(text: str) -> bool:
    """False if the text holds lone surrogates, which stand for bytes that are not UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


READERS: dict[Format, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "imagereward": _imagereward,
}
