"""What tests of plans share: no cache of choices from outside, and a stand-in for the grouped convolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hrnet_fast.inference.execution import tuning_cache


@pytest.fixture(autouse=True)
def _no_cache_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning_cache.ENV_VAR, str(tmp_path / "cache"))


def _grouped_stand_in(xs: Any, weights: Any, *, biases: Any, residuals: Any, relu: bool) -> list[Tensor]:
    """What the operator promises, from the library's convolution."""
    made = []
    for k, x in enumerate(xs):
        y = torch.nn.functional.conv2d(x, weights[k], biases[k], padding=1)
        y = y if residuals is None or residuals[k] is None else y + residuals[k]
        made.append(y.relu() if relu else y)
    return made


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Puts a stand-in for ``grouped_conv3x3`` in place; collects how many branches each call has."""
    calls: list[int] = []

    def stand_in(xs: Any, weights: Any, **options: Any) -> list[Tensor]:
        calls.append(len(xs))
        return _grouped_stand_in(xs, weights, **{"biases": None, "residuals": None, "relu": True} | options)

    monkeypatch.setattr("hrnet_fast.ops.grouped_conv3x3", stand_in, raising=False)
    monkeypatch.delattr("hrnet_fast.ops.pack_grouped_conv3x3", raising=False)
    return calls
