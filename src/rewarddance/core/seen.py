"""The prompts that a model was trained on, kept with the model, so that no evaluation counts them as held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

FILE = "trained_on.txt"


def fingerprint(prompt: str) -> str:
    """Sixteen hexadecimal digits. Leading and trailing blanks of the prompt do not count."""
    return hashlib.blake2b(prompt.strip().encode(), digest_size=8).hexdigest()


def write_seen(folder: Path, prompts: Iterable[str], before: Iterable[str] = ()) -> None:
    """Write one fingerprint a line, sorted.

    Args:
        before: fingerprints of the prompts that the model had been trained on before this training.
    """
    (folder / FILE).write_text("".join(f"{f}\n" for f in sorted({*before, *(fingerprint(p) for p in prompts)})))


def read_seen(folder: Path) -> frozenset[str] | None:
    """Fingerprints of the prompts that the model in a folder was trained on; None where no file says so."""
    path = folder / FILE
    return frozenset(path.read_text().split()) if path.is_file() else None
