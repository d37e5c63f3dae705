"""Texts for comparing: prompts that differ only in case, spaces or punctuation are one prompt."""

from __future__ import annotations

import hashlib
import unicodedata


def key_of(*texts: str) -> bytes:
    """16 bytes that stand for some texts (BLAKE2b). A table of millions of rows keeps these in place of the texts."""
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def normalised(text: str) -> str:
    """A prompt for comparing: NFKC, no case, punctuation as spaces, single spaces.

    >>> normalised("A  red, circle.")
    'a red circle'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(" " if unicodedata.category(c).startswith("P") else c for c in folded).split())
