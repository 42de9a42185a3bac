"""A simulated clock that sleeping advances: measured times do not depend on how busy the machine is."""

from __future__ import annotations

import time

import pytest


class SimulatedTime:
    """Stands in for :mod:`time`'s ``perf_counter``, ``monotonic`` and ``sleep``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def read(self) -> float:
        self.now += 1e-7  # nothing takes no time at all
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def simulate_time(monkeypatch: pytest.MonkeyPatch) -> SimulatedTime:
    """Replace the clocks of the process until the test ends; PyTorch's own work takes no time then."""
    clock = SimulatedTime()
    monkeypatch.setattr(time, "perf_counter", clock.read)
    monkeypatch.setattr(time, "monotonic", clock.read)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock
