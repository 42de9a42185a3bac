"""Who may use an engine's weights, and who may change them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class RWLock:
    """Many may use, or one alone; who wants to be alone waits for those inside and holds off new ones."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._users = 0
        self._closed = False

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: not self._closed)
            self._users += 1
        try:
            yield
        finally:
            with self._free:
                self._users -= 1
                self._free.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: not self._closed)
            self._closed = True
        try:  # an interrupt while it waits must not leave the gate closed
            with self._free:
                self._free.wait_for(lambda: self._users == 0)
            yield
        finally:
            with self._free:
                self._closed = False
                self._free.notify_all()
