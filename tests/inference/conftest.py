"""Shared by tests of plans: an empty tuning cache, and a counter of grouped convolutions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from torch import Tensor

from hrnet_fast.inference import profile
from hrnet_fast.inference.execution import tuning_cache, weight_store

NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _no_cache_from_outside(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is made when something is cached."""
    monkeypatch.setenv(tuning_cache.ENV_VAR, str(tmp_path_factory.getbasetemp() / f"cache{next(NUMBERS)}"))


@pytest.fixture
def _known_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring those of the machine takes a second."""
    monkeypatch.setattr(profile, "ceilings", lambda *_: profile.Ceilings(1e10, 1e11))


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
