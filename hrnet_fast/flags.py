"""Flags of the whole process that several threads want otherwise for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


class ProcessFlag:
    """A flag that is back at the user's value when the last of all who hold it has let go, in whatever order.

    Args:
        get, set: read and write it.
    """

    def __init__(self, get: Callable[[], Any], set: Callable[[Any], None]) -> None:
        self._get, self._set = get, set
        self._lock = threading.Lock()
        self._holders = 0
        self._before: Any = None

    @contextlib.contextmanager
    def held(self, value: Any) -> Iterator[None]:
        """Hold the flag at `value`; while others hold it already, it stays at theirs."""
        with self._lock:
            if not self._holders:
                self._before = self._get()
                self._set(value)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._set(self._before)
