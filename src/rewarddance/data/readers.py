"""The table of readers by name, and the detection of a file's format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.data import clips, images, rows, tools
from rewarddance.data.drafts import Draft
from rewarddance.data.files import Rows, csv_rows, jsonl_rows, rows_of
from rewarddance.data.names import Format


@dataclass(frozen=True)
class Reader:
    """How one format is read.

    Attributes:
        parse: one row and its number -> `Draft`; raises `InputError` with what is wrong with it.
        needs: keys that a row of this format has; an inner tuple lists alternatives, one of which is there.
        rows: how the file is cut into rows.
        check: a further condition on a row that has all keys.
    """

    parse: Callable[[Mapping[str, Any], int], Draft]
    needs: tuple[str | tuple[str, ...], ...]
    rows: Callable[[Path], Rows] = rows_of
    check: Callable[[Mapping[str, Any]], bool] = lambda row: True

    def recognises(self, row: Mapping[str, Any]) -> str | None:
        """The keys by which a row is known to be of this format, as a text; None if it is not."""
        seen = []
        for need in self.needs:
            names = (need,) if isinstance(need, str) else need
            key = next((n for n in names if n in row), None)
            if key is None:
                return None
            seen.append(key)
        return (", ".join(seen) or "responses by question") if self.check(row) else None


def _conversation(row: Mapping[str, Any]) -> bool:
    return any(isinstance(row[key], list) for key in ("prompt", "chosen", "rejected"))


def _responds(row: Mapping[str, Any]) -> bool:
    flat = any(key.endswith(".responses") for key in row)
    return flat or (isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict))


READERS: dict[Format, Reader] = {
    "pickapic": Reader(images.pickapic, ("caption", "label_0", "label_1")),
    "imagerewarddb": Reader(
        images.imagerewarddb,
        ("prompt_id", "prompt", ("image", "image_path"), ("rank", "overall_rating")),
        images.prompt_groups,
    ),
    "imagereward": Reader(images.imagereward, ("prompt", "generations", "ranking")),
    "hpdv3": Reader(images.hpdv3, ("prompt", "path1", "path2")),
    "hpdv2": Reader(images.hpdv2, ("prompt", ("human_preference", "image_path"), ("file_path", "rank"))),
    "richhf": Reader(images.richhf, ("filename", ("artifact_score", "misalignment_score", "aesthetics_score"))),
    "videofeedback": Reader(
        clips.videofeedback,
        (clips.spelled("text prompt"), clips.spelled("visual quality"), ("images", *clips.spelled("video link"))),
    ),
    "videogen": Reader(clips.videogen, ("path_A", "path_B", "prompt", ("VQ", "MQ", "TA", "Overall"))),
    "genai-bench": Reader(clips.genai_bench, (("left_image", "left_video", "left_output_image"), "vote_type")),
    "mj-bench": Reader(images.mj_bench, ("caption", "image0", "image1", "label")),
    "mmrb2": Reader(images.mmrb2, ("response_a", "response_b", "chosen")),
    "label-studio": Reader(tools.label_studio, ("data", "annotations")),
    "argilla": Reader(tools.argilla, (), check=_responds),
    "fastchat": Reader(tools.fastchat, ("tstamp", "type")),
    "trl": Reader(tools.trl, ("prompt", "chosen", "rejected", "images"), check=_conversation),
    "csv": Reader(
        rows.parse_row, ("prompt", ("image_a", "chosen", "images")), csv_rows, check=lambda row: _all_text(row)
    ),
    "jsonl": Reader(rows.parse_row, ("prompt", ("image_a", "chosen", "images", "generations", "media")), jsonl_rows),
}
"""Readers by name, in the order in which `detect` tries them: formats with telling keys first."""


def _all_text(row: Mapping[str, Any]) -> bool:
    """Whether all values are texts, as in a CSV file."""
    return all(v is None or isinstance(v, str) for v in row.values())


@dataclass(frozen=True)
class Detected:
    """The detected format of a file, and the reason."""

    format: Format
    reason: str


def detect(path: Path) -> Detected:
    """The format of a file, by the keys of its first rows.

    Raises:
        InputError: no format has these keys; the message lists them.
    """
    looked = images.first_rows(rows_of(path), 5)
    if not looked:
        raise InputError(f"{path}: no readable row to tell its format by; name it with --format")
    for name, reader in READERS.items():
        if name == "csv" and path.suffix.lower() != ".csv":
            continue
        keys = [reader.recognises(row) for row in looked]
        known = [k for k in keys if k]
        if known and len(known) == len(keys):
            return Detected(name, f"rows have {known[0]}")
    columns = ", ".join(map(repr, list(looked[0])[:20]))
    raise InputError(f"{path}: of no known format; its keys are {columns}. Name the format with --format")


def drafts(path: Path, format: Format) -> Iterator[tuple[int, Draft | InputError]]:
    """Every row of a file as (number, draft), or as (number, what is wrong with it)."""
    reader = READERS[format]
    for place, row in reader.rows(path):
        if isinstance(row, str):
            yield place, InputError(row)
            continue
        try:
            yield place, reader.parse(row, place)
        except InputError as error:
            yield place, error
        except (ValueError, ArithmeticError, TypeError, AttributeError, KeyError) as error:
            yield place, InputError(f"of another shape than {format} rows have ({type(error).__name__}: {error})")
