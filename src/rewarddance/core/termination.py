"""Finish the current step and save it when the system or a person (Ctrl-C) asks the process to end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_NOTE = b"\nrewarddance: Ctrl-C: the run finishes this step and saves it; another Ctrl-C ends at once\n"


class Termination:
    """Inside this context the first SIGTERM or SIGINT (Ctrl-C) sets `signal`. The next one acts as it would outside.

    A signal that the process ignores stays ignored. Signals reach the main thread only; in other threads `signal` stays
    0.

    Attributes:
        signal: number of the signal that came; 0 for none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):  # not `say`: the program may be inside a print now
                os.write(2, _NOTE)
