"""The pieces of ``bn_act`` on CUDA as the compiled extension has them: see ``hrnet_fast/reference/bn_act.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.ops.bn_act_cpu import listed

# Arithmetic on [C] tensors, needed between the collectives of several processes only.
from hrnet_fast.reference.bn_act import Norm, affine, update_running

__all__ = [
    "affine",
    "backward_input",
    "backward_sums",
    "batch_affine",
    "bn_act",
    "running_affine",
    "statistics",
    "update_running",
]


def statistics(x: Tensor) -> Tensor:
    result: Tensor = torch.ops.hrnet_fast.statistics_cuda(x)
    return result


def batch_affine(xs: Sequence[Tensor], norms: Sequence[Norm]) -> list[Tensor]:
    found: list[Tensor] = torch.ops.hrnet_fast.batch_affine_cuda(
        xs, *listed(norms), [n.momentum for n in norms], [n.eps for n in norms]
    )
    return found


def running_affine(norms: Sequence[Norm], dtype: torch.dtype) -> Tensor:
    result: Tensor = torch.ops.hrnet_fast.running_affine_cuda(
        *listed(norms), [n.eps for n in norms], dtype == torch.float64
    )
    return result


def bn_act(
    x: Tensor, affine: Tensor, residual: Tensor | None, relu: bool, residual_affine: Tensor | None = None
) -> Tensor:
    result: Tensor = torch.ops.hrnet_fast.bn_act_cuda(x, affine, residual, residual_affine, relu)
    return result


def backward_sums(
    grad: Tensor, addend: Tensor | None, x: Tensor, affine: Tensor, out: Tensor | None, relu: bool, keep: bool
) -> tuple[Tensor, Tensor | None]:
    sums, kept = torch.ops.hrnet_fast.backward_sums_cuda(grad, addend, x, affine, out, relu, keep)
    return sums, kept if keep else None


def backward_input(grad: Tensor, x: Tensor, affine: Tensor, sums: Tensor, count: float, relu: bool) -> Tensor:
    result: Tensor = torch.ops.hrnet_fast.backward_input_cuda(grad, x, affine, sums, count, relu)
    return result
