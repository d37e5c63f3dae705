"""Normalised texts for comparing: prompts that differ only in case, spaces or punctuation are one prompt."""

from __future__ import annotations

import unicodedata


def normalised(text: str) -> str:
    """A prompt for comparing: NFKC, no case, punctuation as spaces, single spaces.

    >>> normalised("A  red, circle.")
    'a red circle'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(" " if unicodedata.category(c).startswith("P") else c for c in folded).split())
