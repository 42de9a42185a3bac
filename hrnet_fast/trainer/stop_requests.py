"""``StopRequests``: SIGTERM and Ctrl-C let a run finish its step and save; a second Ctrl-C stops it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """A context in which SIGTERM and Ctrl-C are noted instead of ending the process.

    The first request is noted. A second Ctrl-C raises ``KeyboardInterrupt`` at once. Further SIGTERMs change nothing:
    schedulers and ``torchrun`` send several. Handlers are those of before again behind the context. In a thread other
    than the main one, nothing is changed, as Python handles signals there only. A signal that is ignored stays ignored.

    Attributes:
        received: the signal's number, 0 before.
    """

    def __init__(self) -> None:
        self.received = 0
        self._interrupted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for one in SIGNALS:
                if signal.getsignal(one) is not signal.SIG_IGN:
                    self._before[one] = signal.signal(one, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.received = self.received or number
