"""Shared by the benchmarks of operators: the device, tolerances, and calls of forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hrnet_fast.measure import Call

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON_IMPL = "triton" if DEVICE == "cuda" else "reference"  # of operators that have no kernels for CPUs
each_direction = pytest.mark.parametrize("direction", ["forward", "backward"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def tolerance(dtype: torch.dtype) -> float:
    """Return the accepted relative error. On a GPU the library's float32 convolution may round operands to TF32."""
    return 1e-2 if dtype == torch.bfloat16 else 2e-3 if DEVICE == "cuda" else 1e-5


def forward_call(compute: Callable[..., Any], *arguments: Any) -> Call:
    """Return a call of `compute` without gradients."""
    return torch.no_grad()(lambda: compute(*arguments))


def backward_call(out: Tensor, leaves: list[Tensor], grad: Tensor) -> Call:
    """Return a call of the gradients of `out` with respect to `leaves`."""
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)
