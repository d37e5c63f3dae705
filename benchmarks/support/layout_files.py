"""Pictures, clips and files of rows that `layouts` is made of."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SIDE = 24


def png(seed: int) -> bytes:
    """A picture of random pixels, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(folder: Path, seed: int, name: str | None = None) -> str:
    """A picture on the disk; its path relative to the folder."""
    path = name or f"images/{seed:05d}.png"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(png(seed))
    return path


def struct(seed: int) -> dict[str, Any]:
    return {"bytes": png(seed), "path": f"{seed}.png"}


def clip(folder: Path, seed: int) -> str:
    """Bytes that stand for a clip; readers never open clips."""
    path = f"videos/{seed:05d}.mp4"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(b"\x00\x00\x00\x18ftypmp42" + str(seed).encode())
    return path


def as_json(folder: Path, name: str, rows: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(rows))
    return path


def as_lines(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def as_csv(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(folder: Path, name: str, rows: list[dict[str, Any]], **types: pa.DataType) -> Path:
    path = folder / name
    inferred = pa.Table.from_pylist(rows).schema
    schema = pa.schema([pa.field(f.name, types.get(f.name, f.type)) for f in inferred])
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path
