"""Texts as they are compared: prompts that differ in case, spaces or punctuation alone are one prompt."""

from __future__ import annotations

import unicodedata


def normalised(text: str) -> str:
    """A prompt for comparing: NFKC, no case, punctuation as spaces, single spaces.

    >>> normalised("A  red, circle.")
    'a red circle'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(" " if unicodedata.category(c).startswith("P") else c for c in folded).split())
