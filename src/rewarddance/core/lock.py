"""A lock on a folder, so that two processes never work in it at once. The system releases it when a process ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(folder: Path) -> Iterator[bool]:
    """Yields True where this process holds the lock, False where another process does. Creates the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".claimed").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
