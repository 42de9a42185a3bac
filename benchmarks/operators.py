"""Shared by the benchmarks of operators: the device, tolerances, and calls of forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.harness import Case, Session
from hrnet_fast.measure import Call, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON_IMPL = "triton" if DEVICE == "cuda" else "reference"  # of operators that have no kernels for CPUs
each_direction = pytest.mark.parametrize("direction", ["forward", "backward"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def tolerance(dtype: torch.dtype) -> float:
    """Return the accepted relative error. On a GPU the library's float32 convolution may round operands to TF32."""
    return 1e-2 if dtype == torch.bfloat16 else 2e-3 if DEVICE == "cuda" else 1e-5


def backward_call(out: Tensor, leaves: Sequence[Tensor], grad: Tensor) -> Call:
    """Return a call of the gradients of `out` with respect to `leaves`."""
    return partial(torch.autograd.grad, out, leaves, grad, retain_graph=True)


def time_against_eager(
    session: Session,
    benchmark: BenchmarkFixture,
    case: Case,
    computes: tuple[Callable[..., Tensor], Callable[..., Tensor]],
    arguments: Sequence[Any],
    *,
    limit: float,
    keeps_inputs: bool = True,
) -> None:
    """Compare eager operations and an operator with float64, and time the direction that is the case's quantity.

    Args:
        computes: both, on the same arguments.
        arguments: nested sequences of tensors; gradients are those of all that require one.
        limit: the accepted relative error of both.
        keeps_inputs: whether backward reads the inputs, or the result alone.
    """
    leaves = [t for t in tree_leaves(arguments) if isinstance(t, Tensor) and t.requires_grad]
    exact = computes[0](*tree_map_only(Tensor, lambda t: t.detach().double(), arguments))
    calls: dict[str, Call] = {}
    for name, compute in zip(("eager", "fused"), computes, strict=True):
        out = compute(*arguments)
        assert relative_error(out.detach(), exact) < limit
        grad = torch.randn_like(out)
        forward = torch.no_grad()(partial(compute, *arguments))
        calls[name] = forward if case.quantity == "forward" else backward_call(out, leaves, grad)
    moving = leaves if case.quantity == "forward" else [*(leaves if keeps_inputs else [out]), grad]
    session.time_operator(benchmark, case, calls, moving=moving)
