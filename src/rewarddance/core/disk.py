"""Errors of files that cannot be written, mostly because the disk is full: one line that says what a run keeps."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rewarddance.core.errors import RunError

STATE = "state.json"
"""The file of a checkpoint that is written last."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException) -> bool:
    """Whether a file could not be written because the disk, the quota or the limit of a file's size was reached.

    Libraries in Rust (safetensors, tokenizers) give the system's error number only in the text of their errors.
    """
    numbers = [error.errno] if isinstance(error, OSError) else re.findall(r"\(os error (\d+)\)", str(error))
    return any(int(n) in _FULL for n in numbers if n is not None)


def cause(error: BaseException) -> str:
    """The system's message for an error, without the text that a library adds."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = re.sub(r" \(os error \d+\)", "", str(error).rpartition("I/O error: ")[2])
    return " ".join(text.split()) or type(error).__name__


def list_checkpoints(root: Path) -> list[int]:
    """Steps of the complete checkpoints under `root`, ascending."""
    numbers = (p.name.removeprefix("step_") for p in root.glob("step_*") if (p / STATE).is_file())
    return sorted(int(n) for n in numbers if n.isdigit())


def kept(checkpoints: Path) -> str:
    """What a run that ends early keeps and how to go on, for error messages.

    Args:
        checkpoints: the run's folder of checkpoints.
    """
    steps = list_checkpoints(checkpoints)
    if not steps:
        return f"{checkpoints.parent} has no checkpoint yet, and a resumed run begins again"
    return f"{checkpoints.parent} keeps its checkpoint of step {steps[-1]}, and a resumed run goes on from there"


@contextmanager
def writing(what: str | Path, checkpoints: Path | None = None) -> Iterator[None]:
    """A context in which files are written.

    Args:
        what: what is written, in words or by its path.
        checkpoints: the folder of checkpoints of the run that the files belong to.

    Raises:
        RunError: a file could not be written. One line names it, the cause, and what the run keeps.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        hint = "; free some space" if is_full(error) else ""
        after = f"; {kept(checkpoints)}" if checkpoints is not None else ""
        raise RunError(f"{what}: cannot be written ({cause(error)}){hint}{after}") from error
