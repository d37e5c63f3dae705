"""Files of prompts: text with one prompt a line, JSONL with a field `prompt`, JSON of COCO and VBench, and the captions
of sets of pictures (`data/sources.py`).

T2I-CompBench's files are text, GenEval's is JSONL whose `tag` is the category.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.task import Prompt
from rewarddance.data.sources import pictures_of


def read_prompts(path: Path) -> tuple[tuple[Prompt, ...], str]:
    """Distinct prompts of a file, and the file's SHA-256. Blank lines are skipped.

    A `.jsonl` file has one object a line: `prompt`, and optionally `category` and `condition` (a picture file,
    relative to the file of prompts). Other fields are kept in `Prompt.fields`. A `.json` file is a list of such
    objects, VBench's list (`prompt_en`, its first dimension is the category), or COCO's `annotations[].caption`. A
    folder, `.tar`, `.parquet` or `.csv` is a set of pictures: its captions are prompts, with the style as category.

    Raises:
        InputError: no such file, not UTF-8, a line that is not such an object, or no prompts.
    """
    if path.is_dir() or path.suffix.lower() in (".tar", ".parquet", ".csv"):
        return _captions(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of prompts")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")  # a byte order mark is not part of the first prompt
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start + 1}); save it as UTF-8") from None
    if "\0" in text:  # UTF-16 without a byte order mark is valid UTF-8 where all letters are English
        raise InputError(f"{path}: holds NUL characters, probably UTF-16; save it as UTF-8")
    prompts: dict[str, Prompt] = {}
    for prompt in _prompts_in(text, path):
        prompts.setdefault(prompt.text, prompt)
    if not prompts:
        raise InputError(f"{path}: holds no prompts")
    return tuple(prompts.values()), hashlib.sha256(content).hexdigest()


def _captions(source: Path) -> tuple[tuple[Prompt, ...], str]:
    """The distinct captions of a set of pictures, and a hash of them with their styles."""
    prompts: dict[str, Prompt] = {}
    for picture in pictures_of(source):
        if picture.caption:
            row = {"prompt": picture.caption, "category": picture.style}
            prompts.setdefault(picture.caption, _from_row(row, source, picture.name))
    if not prompts:
        raise InputError(f"{source}: a set of pictures without captions")
    texts = json.dumps([(p.text, p.category) for p in prompts.values()])
    return tuple(prompts.values()), hashlib.sha256(texts.encode()).hexdigest()


def _prompts_in(text: str, path: Path) -> Iterator[Prompt]:
    if path.suffix == ".json":
        yield from (_from_row(row, path, f"entry {n}") for n, row in enumerate(_listed(text, path), 1))
        return
    jsonl = path.suffix == ".jsonl"
    for number, line in enumerate(text.split("\n") if jsonl else text.splitlines(), 1):
        if line.strip():
            yield _from_json(line, path, number) if jsonl else Prompt(line.strip())


def _listed(text: str, path: Path) -> list[Any]:
    """The entries of a JSON file of prompts."""
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return list(content["annotations"])
    if not isinstance(content, list):
        raise InputError(f"{path}: needs a list of objects with `prompt` or `prompt_en`, or COCO's `annotations`")
    return content


def _from_json(line: str, path: Path, number: int) -> Prompt:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}: line {number}: not JSON ({error})") from None
    return _from_row(row, path, f"line {number}")


def _from_row(row: Any, path: Path, place: str) -> Prompt:
    name = next((k for k in ("prompt", "prompt_en", "caption") if isinstance(row, dict) and k in row), "prompt")
    if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
        raise InputError(f"{path}: {place}: needs an object with a text `prompt`")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in row[name]):
        raise InputError(f"{path}: {place}: `{name}` holds a NUL or half of a character (a lone surrogate)")
    picture = row.get("condition")
    try:
        condition = None if picture is None else Media.open_picture(path.parent / str(picture))
    except InputError as error:
        raise InputError(f"{path}: {place}: {error}") from None
    dimension = row.get("dimension")
    category = (
        row.get("category") or row.get("tag") or (dimension[0] if isinstance(dimension, list) and dimension else "")
    )
    fields = {k: v for k, v in row.items() if k not in (name, "category", "condition")}
    return Prompt(row[name].strip(), str(category or ""), condition, fields)
