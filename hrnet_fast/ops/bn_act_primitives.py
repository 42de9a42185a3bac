"""The pieces of ``bn_act`` that fused training is made of, by implementation: no autograd and no checks.

What each computes stands in ``hrnet_fast/reference/bn_act.py``; the names are the same everywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from hrnet_fast.implementations import select_implementation
from hrnet_fast.reference.bn_act import Norm

_MODULES = {
    "reference": "hrnet_fast.reference.bn_act",
    "cpu": "hrnet_fast.ops.bn_act_cpu",
    "cuda": "hrnet_fast.ops.bn_act_cuda",
    "triton": "hrnet_fast.kernels.triton.bn_act",
}


class BnActPrimitives(Protocol):
    """What a module of pieces has."""

    def statistics(self, x: Tensor) -> Tensor: ...

    def affine(
        self, mean: Tensor, variance: Tensor, norms: Sequence[Norm], dtype: torch.dtype | None = None
    ) -> Tensor: ...

    def running_affine(self, norms: Sequence[Norm], dtype: torch.dtype) -> Tensor: ...

    def update_running(
        self, norms: Sequence[Norm], mean: Tensor, variance: Tensor, count: int | float | Tensor
    ) -> None: ...

    def batch_affine(self, xs: Sequence[Tensor], norms: Sequence[Norm]) -> list[Tensor]: ...

    def bn_act(
        self, x: Tensor, affine: Tensor, residual: Tensor | None, relu: bool, residual_affine: Tensor | None = None
    ) -> Tensor: ...

    def backward_sums(
        self, grad: Tensor, addend: Tensor | None, x: Tensor, affine: Tensor, out: Tensor | None, relu: bool, keep: bool
    ) -> tuple[Tensor, Tensor | None]: ...

    def backward_input(
        self, grad: Tensor, x: Tensor, affine: Tensor, sums: Tensor, count: float, relu: bool
    ) -> Tensor: ...


def bn_act_primitives(impl: str, tensor: Tensor) -> BnActPrimitives:
    """Return the pieces of an implementation for a tensor's device.

    Raises:
        ImplementationError: a named implementation that cannot run here.
    """
    return cast(BnActPrimitives, importlib.import_module(_MODULES[select_implementation("bn_act", impl, tensor)]))
