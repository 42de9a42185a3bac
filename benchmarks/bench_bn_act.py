"""``bn_act`` against eager ``batch_norm``, addition and ReLU: the end of a residual unit of a W48's first branch.

Runs the implementation that ``impl="auto"`` selects, and shows its name.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import batch_norm, relu_

from benchmarks.harness import Case, Session
from benchmarks.operators import DEVICE, backward_call, each_direction, each_dtype
from hrnet_fast.implementations import select_implementation
from hrnet_fast.measure import Call, relative_error
from hrnet_fast.ops import bn_act

CHANNELS = 48


def running(dtype: torch.dtype) -> list[Tensor]:
    return [value(CHANNELS, device=DEVICE, dtype=dtype) for value in (torch.zeros, torch.ones)]


def eager(leaves: list[Tensor], buffers: list[Tensor]) -> Tensor:
    """The end of a plain residual unit: normalise, add, ReLU in place."""
    x, weight, bias, *residual = leaves
    y = batch_norm(x, buffers[0], buffers[1], weight, bias, training=True)
    return relu_(y + residual[0] if residual else y)


def fused(leaves: list[Tensor], buffers: list[Tensor]) -> Tensor:
    x, weight, bias, *residual = leaves
    return bn_act(x, weight, bias, *buffers, residual=residual[0] if residual else None)


@each_direction
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["last", "contiguous"])
@each_dtype
def bench_bn_act(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, dtype: torch.dtype, layout: torch.memory_format,
    residual: bool, direction: str,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    batch, height, width = (32 if DEVICE == "cuda" else 2, 96, 72) if measuring else (2, 12, 9)
    maps = [torch.randn(batch, CHANNELS, height, width, device=DEVICE).to(dtype) for _ in range(2 if residual else 1)]
    maps = [m.contiguous(memory_format=layout) for m in maps]
    vectors = [torch.rand(CHANNELS, device=DEVICE) + 0.5 for _ in range(2)]
    leaves = [t.requires_grad_() for t in (maps[0], *vectors, *maps[1:])]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    exact = eager(wide, running(torch.float64))
    grad = torch.randn_like(maps[0])
    exact_grads = torch.autograd.grad(exact, wide, grad.double())
    calls: dict[str, Call] = {}
    for name, compute in (("eager", eager), ("fused", fused)):
        # Each has its own: eager saves them for backward, which fails after an update by the other.
        buffers = running(torch.float32)
        out = compute(leaves, buffers)
        grads = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        assert relative_error(out.detach(), exact.detach()) < (1e-5 if dtype == torch.float32 else 1e-2)
        assert relative_error(grads, exact_grads) < (1e-3 if dtype == torch.float32 else 5e-2)
        # Forward with gradients enabled, as in training: it includes the time to keep what backward needs.
        forward = partial(compute, leaves, buffers)
        calls[name] = forward if direction == "forward" else backward_call(out, leaves, grad)
    case = Case(
        "operators",
        f"bn_act {batch}x{CHANNELS}x{height}x{width} {str(layout)[6:]}{' residual' * residual}",
        direction,
        dtype,
    )
    benchmark.extra_info["impl"] = select_implementation("bn_act", "auto", maps[0])
    session.time_operator(benchmark, case, calls, moving=leaves if direction == "forward" else [*leaves, grad])
