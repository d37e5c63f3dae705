"""`data export`: the records of a split as a file of another format, beside a folder with their pictures."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rewarddance.core.errors import InputError
from rewarddance.data import tool_writers, writers
from rewarddance.data.names import FORMATS, Format
from rewarddance.data.parquet import voted_records
from rewarddance.data.schema import stored_name
from rewarddance.data.tfrecord import write_tfrecord
from rewarddance.data.votes import MediaRef, VotedRecord
from rewarddance.data.writers import Put, Rows, Unfit

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_PART = pa.struct([("type", pa.string()), ("text", pa.string())])
_CONVERSATION = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(_PART))]))
_COLUMNS: dict[str, dict[str, Any]] = {
    "imagerewarddb": dict.fromkeys(("prompt_id", "prompt", "classification"), pa.string())
    | {"image": _IMAGE, "image_amount_in_total": pa.int32()}
    | dict.fromkeys(("rank", "overall_rating", "image_text_alignment_rating", "fidelity_rating"), pa.float64()),
    "pickapic": dict.fromkeys(
        ("caption", "best_image_uid", "image_0_uid", "image_1_uid", "model_0", "model_1", "ranking_id", "user_id"),
        pa.string(),
    )
    | {"jpg_0": pa.binary(), "jpg_1": pa.binary(), "label_0": pa.float64(), "label_1": pa.float64()}
    | {"has_label": pa.bool_(), "are_different": pa.bool_(), "created_at": pa.timestamp("us", "UTC")},
    "genai-bench": dict.fromkeys(
        ("id", "prompt", "vote_type", "left_model", "right_model", "judge", "category"), pa.string()
    )
    | {"timestamp": pa.float64(), "left_image": _IMAGE, "right_image": _IMAGE, "source_image": _IMAGE},
    "mj-bench": dict.fromkeys(("id", "caption", "category"), pa.string())
    | {"image0": _IMAGE, "image1": _IMAGE, "label": pa.float64()},
    "trl": {"id": pa.string(), "images": pa.list_(_IMAGE)}
    | dict.fromkeys(("prompt", "chosen", "rejected"), _CONVERSATION),
}
"""Columns of the formats that are Parquet files."""


@dataclass(frozen=True)
class Writer:
    """How one format is written.

    Attributes:
        rows: a record as rows of the format.
        file: name of the file; its ending says how rows are put into it.
        one_criterion: the format has no place for criteria, so one is exported.
        loses: what the format has no place for.
    """

    rows: Callable[[VotedRecord, Put], Rows]
    file: str
    one_criterion: bool = True
    loses: str = "who voted, when and how"


WRITERS: dict[Format, Writer] = {
    "jsonl": Writer(writers.jsonl, "records.jsonl", False, "nothing"),
    "csv": Writer(
        writers.csv,
        "votes.csv",
        False,
        "which rows are one record; a rating without a pair; other groups; a second condition",
    ),
    "imagereward": Writer(writers.imagereward, "imagereward.json", loses="votes beside one ranking"),
    "imagerewarddb": Writer(writers.imagerewarddb, "imagerewarddb.parquet", False, "who voted; other criteria"),
    "hpdv2": Writer(writers.hpdv2, "hpdv2.json", loses="times, order shown"),
    "hpdv3": Writer(writers.hpdv3, "hpdv3.json", loses="ties; who voted"),
    "pickapic": Writer(writers.pickapic, "pickapic.parquet", loses="seconds, order shown"),
    "richhf": Writer(writers.richhf, "richhf.tfrecord", False, "pairs; who voted; ids"),
    "videofeedback": Writer(writers.videofeedback, "videofeedback.json", False, "pairs; who voted"),
    "videogen": Writer(writers.videogen, "videogen.csv", False, "who voted; ids; several votes"),
    "genai-bench": Writer(writers.genai_bench, "genai_bench.parquet", loses="seconds; clips"),
    "mj-bench": Writer(writers.mj_bench, "mj_bench.parquet", loses="who voted; several votes"),
    "mmrb2": Writer(writers.mmrb2, "mmrb2.json", loses="ties; who voted"),
    "trl": Writer(writers.trl, "trl.parquet", loses="ties; who voted"),
    "label-studio": Writer(
        tool_writers.label_studio, "label_studio.json", False, "strength; counts; a second condition"
    ),
    "argilla": Writer(tool_writers.argilla, "argilla.json", False, "times, strength, counts"),
    "fastchat": Writer(tool_writers.fastchat, "fastchat.jsonl", loses="pictures; who voted"),
}
assert set(WRITERS) == set(FORMATS)


def export(
    split: Path, format: Format, out: Path, criterion: str | None = None, media: str = "media"
) -> dict[str, Any]:
    """Write the records of a split to `out`, and their pictures to `out/media` if the format names paths.

    Args:
        criterion: the criterion to export to a format without criteria. None: `overall`, or else the first criterion of
            each record.

    Returns:
        The file's name, and counts of written records, rows and records left out with reasons.

    Raises:
        InputError: no record fits the format.
    """
    writer = WRITERS[format]
    out.mkdir(parents=True, exist_ok=True)
    stored: set[str] = set()
    left_out: Counter[str] = Counter()
    counts = {"records": 0, "rows": 0}

    def put(ref: MediaRef) -> str:
        if ref.kind != "image" and ref.data is None:
            return ref.path or ""
        if ref.data is None:
            raise Unfit("a picture without its file")
        name = f"{media}/{stored_name(ref)}"
        if name not in stored:
            (out / media).mkdir(exist_ok=True)
            (out / name).write_bytes(ref.data)
            stored.add(name)
        return name

    def rows() -> Iterator[dict[str, Any]]:
        for record in voted_records(split):
            try:
                made = writer.rows(_chosen(record, criterion) if writer.one_criterion else record, put)
            except Unfit as error:
                left_out[str(error)] += 1
                continue
            counts["records"] += 1
            counts["rows"] += len(made)
            yield from made
        if not counts["records"]:
            reasons = "; ".join(f"{n} x {why}" for why, n in left_out.most_common(3))
            raise InputError(f"{split}: no record fits the format {format} ({reasons})")

    target = out / writer.file
    beside = out / f".{writer.file}.partial"
    try:
        _write(rows(), beside, target.suffix, format)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    beside.replace(target)
    return {"file": str(target), **counts, "left_out": dict(left_out), "the_format_loses": writer.loses}


def _chosen(record: VotedRecord, criterion: str | None) -> VotedRecord:
    """The record with the votes of one criterion."""
    names = list(dict.fromkeys(v.criterion for v in record.votes))
    if not names:
        raise Unfit("no votes")
    name = criterion or ("overall" if "overall" in names else names[0])
    if name not in names:
        raise Unfit(f"no votes by {name}")
    return replace(record, votes=tuple(v for v in record.votes if v.criterion == name))


def _write(rows: Iterator[dict[str, Any]], path: Path, suffix: str, format: str) -> None:
    if suffix == ".parquet":
        _write_parquet(rows, path, _COLUMNS[format])
    elif suffix == ".tfrecord":
        write_tfrecord(rows, path)
    elif suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            head = next(rows)
            table = csv.DictWriter(file, list(head))
            table.writeheader()
            table.writerow(head)
            table.writerows(rows)
    else:
        with open(path, "w", encoding="utf-8") as file:
            if suffix == ".jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            else:
                _write_array(rows, file.write, '{"pairs": [' if format == "mmrb2" else "[", format == "mmrb2")


def _write_array(rows: Iterable[dict[str, Any]], write: Callable[[str], Any], opening: str, closing: bool) -> None:
    write(opening)
    for i, row in enumerate(rows):
        write(("," if i else "") + "\n" + json.dumps(row, ensure_ascii=False))
    write("\n]}\n" if closing else "\n]\n")


def _write_parquet(rows: Iterable[dict[str, Any]], path: Path, columns: dict[str, Any]) -> None:
    """A Parquet file whose pictures `datasets` decodes."""
    features: dict[str, Any] = {name: {"_type": "Image"} for name, kind in columns.items() if kind == _IMAGE}
    features |= {
        n: {"feature": {"_type": "Image"}, "_type": "List"} for n, k in columns.items() if k == pa.list_(_IMAGE)
    }
    head = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(list(columns.items()), metadata=head)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        remaining = iter(rows)
        while part := list(islice(remaining, 64)):
            writer.write_table(pa.Table.from_pylist(part, schema))
