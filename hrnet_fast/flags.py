"""``ProcessFlag``: a reference-counted override of a process-wide setting."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


class ProcessFlag:
    """A process-wide setting that returns to the user's value when the last of overlapping overrides ends.

    Args:
        get, set: read and write the setting.
    """

    def __init__(self, get: Callable[[], Any], set: Callable[[Any], None]) -> None:
        self._get, self._set = get, set
        self._lock = threading.Lock()
        self._holders = 0
        self._before: Any = None

    @contextlib.contextmanager
    def held(self, value: Any) -> Iterator[None]:
        """Override the setting by `value` for a context; inside another override the outer value stays."""
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
