"""Finish the current step and save it when the system asks the process to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Termination:
    """Inside this context SIGTERM sets `stop` instead of ending the process. A second SIGTERM ends it as usual.

    Signals reach the main thread only; in other threads `stop` stays False.
    """

    def __init__(self) -> None:
        self.stop = False
        self._in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._in_main_thread:
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        signal.signal(signal.SIGTERM, self._before)
