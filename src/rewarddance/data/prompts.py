"""Files of prompts: text with one prompt a line, or JSONL with a field `prompt` and any others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.task import Prompt


def read_prompts(path: Path) -> tuple[tuple[Prompt, ...], str]:
    """Distinct prompts of a file, and the file's SHA-256. Blank lines are skipped.

    A `.jsonl` file has one object a line: `prompt`, and where wanted `category` and `condition` (a picture file,
    relative to the file of prompts). Other fields are kept in `Prompt.fields`.

    Raises:
        InputError: no such file, not UTF-8, a line that is no such object, or no prompts.
    """
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
    for number, line in enumerate(text.split("\n") if path.suffix == ".jsonl" else text.splitlines(), 1):
        if line.strip():
            prompt = _from_json(line, path, number) if path.suffix == ".jsonl" else Prompt(line.strip())
            prompts.setdefault(prompt.text, prompt)
    if not prompts:
        raise InputError(f"{path}: holds no prompts")
    return tuple(prompts.values()), hashlib.sha256(content).hexdigest()


def _from_json(line: str, path: Path, number: int) -> Prompt:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}: line {number}: not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise InputError(f"{path}: line {number}: needs an object with a text `prompt`")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in row["prompt"]):
        raise InputError(f"{path}: line {number}: `prompt` holds a NUL or half of a character (a lone surrogate)")
    picture = row.get("condition")
    try:
        condition = None if picture is None else Media.open(path.parent / str(picture))
    except InputError as error:
        raise InputError(f"{path}: line {number}: {error}") from None
    fields = {k: v for k, v in row.items() if k not in ("prompt", "category", "condition")}
    return Prompt(row["prompt"].strip(), str(row.get("category") or ""), condition, fields)
