"""No progress bars of transformers for models that load in a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_loading_bar(active: bool = True) -> Iterator[None]:
    """A context without transformers' progress bars, if `active` and they are on."""
    if not (active and logging.is_progress_bar_enabled()):
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
