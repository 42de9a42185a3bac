"""Ways to compare a model with its accelerated copy."""

from __future__ import annotations

import copy
from typing import Any

import tiny_networks
import torch
from tiny_networks import gradients, relative_l2, train_once
from torch import Tensor, nn

from hrnet_fast.training import Report, accelerate, explain, restore

EXACT = 1e-10  # of float64 sums in two orders, through a network's depth


def tiny(*args: Any, **options: Any) -> Any:
    """Return a tiny network of plain modules."""
    return restore(tiny_networks.tiny(*args, **options))


def two_stages(*args: Any, **options: Any) -> Any:
    return restore(tiny_networks.two_stages(*args, **options))


def accelerated(model: nn.Module, impl: str = "reference", memory: str = "lean") -> Any:
    """Return an accelerated copy."""
    return accelerate(copy.deepcopy(model), impl=impl, memory=memory)


def reasons(model: nn.Module) -> dict[str, str]:
    """Of every block that does not take the fused path: its name and why."""
    return {b.name: b.reason for b in explain(model).blocks if not b.fast}


def assert_all_fast(model: nn.Module) -> Report:
    """Every block, and every part of one but layers that have no fused form, such as a head's classifier."""
    report = explain(model)
    for b in report.blocks:
        assert b.fast, str(report)
        assert not b.reason or all(r.endswith("stands outside of a fusible row") for r in b.reason.split("; ")), str(b)
    return report


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if "running_" in k or "num_batches" in k}


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = EXACT) -> None:
    """The same keys, and every tensor near; what vanishes but for rounding is judged by the largest norm."""
    assert actual.keys() == expected.keys()
    floor = 1e-12 * max((t.double().norm().item() for t in expected.values()), default=0.0)
    for key, e in expected.items():
        a = actual[key]
        assert a.shape == e.shape, key
        assert a.dtype == e.dtype, key
        distance = (a.double() - e.double()).norm().item()
        assert distance <= tolerance * e.double().norm().item() + floor, key


def assert_trains_alike(fast: nn.Module, plain: nn.Module, x: Tensor | None = None, tolerance: float = EXACT) -> None:
    """One step of training gives equal outputs, gradients (the input's too) and statistics."""
    if x is None:
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fast.zero_grad()
    plain.zero_grad()
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    for a, e in zip(train_once(fast, own), train_once(plain, other), strict=True):
        assert a.dtype == e.dtype
        assert relative_l2(a, e) <= tolerance
    assert own.grad is not None
    assert other.grad is not None
    assert relative_l2(own.grad, other.grad) <= tolerance
    assert_near(gradients(fast), gradients(plain), tolerance)
    assert_near(statistics(fast), statistics(plain), tolerance)


def assert_evaluates_alike(fast: nn.Module, plain: nn.Module, x: Tensor, tolerance: float = EXACT) -> None:
    with torch.no_grad():
        a, e = fast.eval()(x), plain.eval()(x)
    assert type(a) is type(e)
    for one, other in zip([a] if isinstance(a, Tensor) else a, [e] if isinstance(e, Tensor) else e, strict=True):
        assert relative_l2(one, other) <= tolerance
