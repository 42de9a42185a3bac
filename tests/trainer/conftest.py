"""Settings of the loop's tests: signals act as in a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _signals_of_a_terminal() -> Iterator[None]:
    """Commands that a shell starts in the background ignore Ctrl-C, which a run then does too."""
    before = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for one, usual in tuple(before.items()):
        before[one] = signal.getsignal(one)
        if before[one] is signal.SIG_IGN:
            signal.signal(one, usual)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)
