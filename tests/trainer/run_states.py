"""Comparison of what runs leave in their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.trainer import read_log

TIMES = ("images_per_second", "wait_share", "seconds", "environment")

APART = ("log_size", "epoch_seconds", "epoch_waited", "workers")  # of states


def numbers_of_log(folder: Path) -> list[dict[str, Any]]:
    """Return the records of steps, epochs and evaluations, without what depends on time."""
    records = [r for r in read_log(folder / "log.jsonl") if r["kind"] in ("step", "epoch", "evaluation", "end")]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def state_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.pt", weights_only=True)  # type: ignore[no-any-return]


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Return the places where two states differ in a bit, times apart."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [place]
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [k for k in {**a, **b} if k not in APART]
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{place}/{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for k, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{place}/{k}")]
    return [] if type(a) is type(b) and a == b else [place]


def assert_same_run(a: Path, b: Path) -> None:
    """All weights, states, random states, figures and losses are equal to the bit."""
    found = differences(state_of(a), state_of(b))
    assert not found, found
    assert numbers_of_log(a) == numbers_of_log(b)
    for name in {p.name for folder in (a, b) for p in folder.glob("*.pth")}:
        assert differences(torch.load(a / name), torch.load(b / name)) == [], name
