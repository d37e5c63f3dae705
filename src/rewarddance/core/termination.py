"""Finish the step and save when the machine is wanted back."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Termination:
    """Inside, SIGTERM sets `stop` instead of ending the process; a second one ends it as usual.

    Only the main thread can listen; elsewhere `stop` stays False.
    """

    def __init__(self) -> None:
        self.stop = False
        self._listens = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        signal.signal(signal.SIGTERM, self._before)
