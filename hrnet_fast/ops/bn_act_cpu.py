"""The pieces of ``bn_act`` as the compiled extension has them: see ``hrnet_fast/reference/bn_act.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast import _C  # noqa: F401  (registers what torch.ops finds below)

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

_ABSENT = torch.empty(0)


def statistics(x: Tensor) -> Tensor:
    result: Tensor = torch.ops.hrnet_fast.statistics_cpu(x)
    return result


def batch_affine(xs: Sequence[Tensor], norms: Sequence[Norm]) -> list[Tensor]:
    found: list[Tensor] = torch.ops.hrnet_fast.batch_affine_cpu(
        xs, *listed(norms), [n.momentum for n in norms], [n.eps for n in norms]
    )
    return found


def running_affine(norms: Sequence[Norm], dtype: torch.dtype) -> Tensor:
    result: Tensor = torch.ops.hrnet_fast.running_affine_cpu(
        *listed(norms), [n.eps for n in norms], dtype == torch.float64
    )
    return result


def listed(norms: Sequence[Norm]) -> tuple[list[int], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Channels, weights, biases, means and variances; an empty tensor stands for an absent one."""
    columns = zip(*[[_ABSENT if t is None else t for t in n[1:5]] for n in norms], strict=True)
    weights, biases, means, variances = map(list, columns)
    return [n.channels for n in norms], weights, biases, means, variances


def bn_act(
    x: Tensor, affine: Tensor, residual: Tensor | None, relu: bool, residual_affine: Tensor | None = None
) -> Tensor:
    result: Tensor = torch.ops.hrnet_fast.bn_act_cpu(x, affine, residual, residual_affine, relu)
    return result


def backward_sums(
    grad: Tensor, addend: Tensor | None, x: Tensor, affine: Tensor, out: Tensor | None, relu: bool, keep: bool
) -> tuple[Tensor, Tensor | None]:
    sums, kept = torch.ops.hrnet_fast.backward_sums_cpu(grad, addend, x, affine, out, relu, keep)
    return sums, kept if keep else None


def backward_input(grad: Tensor, x: Tensor, affine: Tensor, sums: Tensor, count: float, relu: bool) -> Tensor:
    result: Tensor = torch.ops.hrnet_fast.backward_input_cpu(grad, x, affine, sums, count, relu)
    return result
