"""Shared by tests of graphed steps: captures on the CPU."""

from __future__ import annotations

import pytest
from fake_capturer import FakeCapturer

from hrnet_fast.training import graphed_step


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> type[FakeCapturer]:
    """Captures on the CPU, by a class that the test may set."""
    kind = type("Fake", (FakeCapturer,), {})
    monkeypatch.setattr(graphed_step, "CudaCapturer", kind)
    return kind
