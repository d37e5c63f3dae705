"""Which prompts a model was trained on, kept with it, so that no evaluation counts them as held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

FILE = "trained_on.txt"


def fingerprint(prompt: str) -> str:
    """Sixteen hexadecimal digits; prompts that differ in outer blanks only have the same."""
    return hashlib.blake2b(prompt.strip().encode(), digest_size=8).hexdigest()


def write_seen(folder: Path, prompts: Iterable[str], before: Iterable[str] = ()) -> None:
    """One fingerprint a line, sorted.

    Args:
        before: fingerprints of what the model that training began from had been trained on.
    """
    (folder / FILE).write_text("".join(f"{f}\n" for f in sorted({*before, *(fingerprint(p) for p in prompts)})))


def read_seen(folder: Path) -> frozenset[str] | None:
    """Fingerprints of the prompts that the model in a folder was trained on; None where nobody wrote them down."""
    path = folder / FILE
    return frozenset(path.read_text().split()) if path.is_file() else None
