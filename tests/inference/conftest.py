"""Shared by tests of plans: an empty tuning cache, and a counter of grouped convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from hrnet_fast.inference.execution import tuning_cache, weight_store


@pytest.fixture(autouse=True)
def _no_cache_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning_cache.ENV_VAR, str(tmp_path / "cache"))


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many branches each call of ``grouped_conv3x3`` has; on CPUs its reference runs."""
    calls: list[int] = []
    operator = weight_store.grouped_conv3x3

    def counted(xs: Any, weights: Any, **options: Any) -> list[Tensor]:
        calls.append(len(xs))
        return operator(xs, weights, **options)

    monkeypatch.setattr(weight_store, "grouped_conv3x3", counted)
    return calls
