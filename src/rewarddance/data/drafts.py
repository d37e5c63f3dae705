"""The result of reading a row, and the small functions that all readers share. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.data.votes import MediaKind, MediaRef, VotedRecord

VIDEO_ENDINGS = (".mp4", ".webm", ".mov", ".avi", ".mkv", ".m4v", ".gif")
"""File endings of clips. `data.loading` opens a GIF, because a GIF of one frame is a picture."""


@dataclass(frozen=True)
class Draft:
    """A parsed row. Its pictures are not loaded yet; paths are as the file gives them.

    Attributes:
        winner_first: the file's order of the two candidates gives the label away. The importer then orders them by
            content, so that the position does not tell the label.
        own_criteria: the criteria are the user's own words and must be known to the importer.
    """

    record: VotedRecord
    winner_first: bool = False
    own_criteria: bool = False


class Skipped(InputError):
    """A row that the format itself marks as not a judgement. It is counted, and is not an error."""


class Ambiguous(InputError):
    """A row that makes the meaning of all rows doubtful. The import stops, also with `on_error="skip"`."""


def text(row: Mapping[str, Any], *keys: str) -> str:
    """The text under the first of `keys` that is there.

    Raises:
        InputError: missing or empty.
    """
    value = first_of(row, *keys)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"empty or missing {keys[0]!r}")
    return value.strip()


def first_of(row: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first of `keys` that is there and not None."""
    return next((row[k] for k in keys if row.get(k) is not None), None)


def optional(row: Mapping[str, Any], *keys: str) -> str | None:
    """A value as text, None if it is missing or empty."""
    value = first_of(row, *keys)
    return None if value is None or str(value).strip() == "" else str(value).strip()


def number(value: Any, name: str) -> float:
    """A finite number.

    Raises:
        InputError: the value is not a finite number.
    """
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} {str(value)[:40]!r} is not a number") from None
    if not math.isfinite(result):
        raise InputError(f"{name} {value!r} is not a finite number")
    return result


def groups_of(row: Mapping[str, Any], *keys: str, **renamed: str) -> dict[str, str]:
    """Values of columns as groups; `renamed` maps a group's name to its column."""
    columns = {k: k for k in keys} | renamed
    return {name: str(row[c]).strip() for name, c in columns.items() if row.get(c) not in (None, "")}


def medium(value: Any, name: str, kind: MediaKind | None = None, **facts: Any) -> MediaRef:
    """A picture or clip from a path, the bytes of a file, or the struct of both that `datasets` writes.

    Args:
        kind: picture or clip. If None, the ending of the path decides.

    Raises:
        InputError: the value is none of these.
    """
    path, data = value, None
    if isinstance(value, bytes):
        path, data = None, value
    elif isinstance(value, dict):
        data = value.get("bytes") or None
        path = value.get("path") or value.get("src")
    if data is None and (not isinstance(path, str) or not path.strip()):
        raise InputError(f"empty or missing {name!r}")
    path = path.strip() if isinstance(path, str) else None
    if kind is None:
        kind = "video" if path and path.lower().split("?")[0].endswith(VIDEO_ENDINGS) else "image"
    return MediaRef(kind, path or None, data=data, **facts)


def list_of(row: Mapping[str, Any], key: str, least: int = 1) -> list[Any]:
    """A list with at least `least` entries.

    Raises:
        InputError: the value is not such a list.
    """
    value = row.get(key)
    if not isinstance(value, list) or len(value) < least:
        raise InputError(f"{key!r} must be a list of {least} or more")
    return value
