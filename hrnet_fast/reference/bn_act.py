"""``bn_act`` in plain PyTorch: its primitives, which are the oracle of every backend's.

What each computes, and its arguments: :class:`hrnet_fast.ops.bn_act_primitives.BnActPrimitives`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.norm_affine import Norm, affine, math_dtype, norms_of_maps, update_running


def statistics(x: Tensor) -> Tensor:
    return torch.stack(_moments(x)).to(math_dtype(x.dtype))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] in float64."""
    variance, mean = torch.var_mean(x.to(torch.float64), (0, 2, 3), correction=0)
    return mean, variance


def running_affine(norms: Sequence[Norm], dtype: torch.dtype) -> Tensor:
    means = torch.cat([n.running_mean for n in norms if n.running_mean is not None])
    variances = torch.cat([n.running_var for n in norms if n.running_var is not None])
    return affine(means, variances, norms, dtype)


def batch_affine(xs: Sequence[Tensor], norms: Sequence[Norm]) -> list[Tensor]:
    results = []
    for x, own in zip(xs, norms_of_maps(xs, norms), strict=True):
        mean, variance = _moments(x)
        results.append(affine(mean, variance, own, math_dtype(x.dtype)))
        update_running(own, mean, variance, x.numel() // max(1, x.shape[1]))
    return results


def backward_sums(
    grad: Tensor, addend: Tensor | None, x: Tensor, affine: Tensor, out: Tensor | None, relu: bool, keep: bool
) -> tuple[Tensor, Tensor | None]:
    g = _masked(grad if addend is None else grad + addend, x, affine, out, relu)
    mean, invstd = affine[0].view(1, -1, 1, 1), affine[1].view(1, -1, 1, 1)
    wide = g.to(torch.float64)
    products = wide * ((x.to(torch.float64) - mean) * invstd)
    sums = torch.stack([wide.sum((0, 2, 3)), products.sum((0, 2, 3))]).to(affine.dtype)
    return sums, g if keep else None


def backward_input(grad: Tensor, x: Tensor, affine: Tensor, sums: Tensor, count: float, relu: bool) -> Tensor:
    g = _masked(grad, x, affine, None, relu).to(affine.dtype)
    mean, invstd, scale = (affine[k].view(1, -1, 1, 1) for k in range(3))
    if count != float("inf"):
        shares = (sums / count).view(2, 1, -1, 1, 1)
        g = g - shares[0] - (x.to(affine.dtype) - mean) * invstd * shares[1]
    return (g * scale).to(x.dtype)


def _masked(grad: Tensor, x: Tensor, affine: Tensor, out: Tensor | None, relu: bool) -> Tensor:
    if out is None and not relu:
        return grad
    if out is None:
        out = _applied(x, affine)
    return grad.masked_fill(out <= 0, 0)


def bn_act(
    x: Tensor, affine: Tensor, residual: Tensor | None, relu: bool, residual_affine: Tensor | None = None
) -> Tensor:
    y = _applied(x, affine)
    if residual is not None:
        y = y + (residual if residual_affine is None else _applied(residual, residual_affine))
    return (y.relu() if relu else y).to(x.dtype)


def _applied(x: Tensor, affine: Tensor) -> Tensor:
    return x.to(affine.dtype) * affine[2].view(1, -1, 1, 1) + affine[3].view(1, -1, 1, 1)
