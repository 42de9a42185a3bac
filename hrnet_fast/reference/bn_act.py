"""``bn_act`` in plain PyTorch: the whole operator, and the pieces that fused training is made of.

``kernels/triton/bn_act.py`` and the compiled extension have the same pieces under the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Norm(NamedTuple):
    """One batch normalisation's parameters and buffers, [channels] each; None where the layer has none.

    ``momentum`` is the weight of the new batch: a cumulative average's 1 / count is resolved by the caller.
    """

    channels: int
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float
    eps: float


def math_dtype(dtype: torch.dtype) -> torch.dtype:
    """What normalisation computes in: float32 for half types."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def statistics(x: Tensor) -> Tensor:
    """Return mean and biased variance of [N, C, H, W] over all but C, as [2, C] of :func:`math_dtype`."""
    return torch.stack(_moments(x)).to(math_dtype(x.dtype))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] in float64."""
    variance, mean = torch.var_mean(x.to(torch.float64), (0, 2, 3), correction=0)
    return mean, variance


def affine(mean: Tensor, variance: Tensor, norms: Sequence[Norm], dtype: torch.dtype | None = None) -> Tensor:
    """Return mean, invstd, scale and shift as [4, C] of `dtype`, or of the mean's: y = scale * x + shift normalises x.

    ``norms`` follow one another along the C channels. Computed in float64 and rounded once, the shift by the rounded
    scale: an error of the shift is one of the whole channel.
    """
    result = torch.empty(4, mean.numel(), dtype=dtype or mean.dtype, device=mean.device)
    mean, variance = mean.to(torch.float64), variance.to(torch.float64)
    start = 0
    for norm in norms:
        own = slice(start, start + norm.channels)
        start += norm.channels
        invstd = torch.rsqrt(variance[own] + norm.eps)
        scale = (invstd if norm.weight is None else invstd * norm.weight).to(result.dtype)
        moved = -mean[own] * scale
        result[0, own], result[1, own], result[2, own] = mean[own], invstd, scale
        result[3, own] = moved if norm.bias is None else norm.bias + moved
    return result


def running_affine(norms: Sequence[Norm], dtype: torch.dtype) -> Tensor:
    """:func:`affine` of the running statistics, in `dtype`: what evaluation and frozen statistics apply."""
    means = torch.cat([n.running_mean for n in norms if n.running_mean is not None])
    variances = torch.cat([n.running_var for n in norms if n.running_var is not None])
    return affine(means, variances, norms, dtype)


def update_running(norms: Sequence[Norm], mean: Tensor, variance: Tensor, count: int | Tensor) -> None:
    """Move the running statistics towards those of a batch of `count` values per channel; variance becomes unbiased."""
    start = 0
    for norm in norms:
        own = slice(start, start + norm.channels)
        start += norm.channels
        if norm.running_mean is not None:
            _move(norm.running_mean, mean[own], norm.momentum)
        if norm.running_var is not None:
            _move(norm.running_var, variance[own] * (count / (count - 1)), norm.momentum)


def _move(running: Tensor, value: Tensor, momentum: float) -> None:
    """Move towards `value`, rounded once."""
    running.copy_(running.to(torch.float64).lerp(value.to(torch.float64), momentum))


def batch_affine(xs: Sequence[Tensor], norms: Sequence[Norm]) -> list[Tensor]:
    """Return :func:`affine` of each map's own statistics, and update the running ones.

    Args:
        xs: maps [N, C_x, H, W].
        norms: in order along the channels of all maps, one after another.
    """
    results = []
    left = list(norms)
    for x in xs:
        own: list[Norm] = []
        while sum(n.channels for n in own) < x.shape[1]:
            own.append(left.pop(0))
        mean, variance = _moments(x)
        results.append(affine(mean, variance, own, math_dtype(x.dtype)))
        update_running(own, mean, variance, x.numel() // max(1, x.shape[1]))
    return results


def backward_sums(
    grad: Tensor, addend: Tensor | None, x: Tensor, affine: Tensor, out: Tensor | None, relu: bool, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of shift and scale-before-invstd, and on request the masked gradient.

    With g = (grad + addend) where the activation was positive, else 0: ``sums`` [2, C] holds the sums over all but C of
    g and of g * (x - mean) * invstd, which are the gradients of a normalisation's bias and weight.

    Args:
        grad, addend: two parts of the gradient of the activation, [N, C, H, W]; the second may be None.
        x: what was normalised (a convolution's output).
        affine: [4, C] of :func:`affine`.
        out: the activation, if it is at hand and was activated; its sign is the mask.
        relu: without `out`: whether ReLU followed; the mask is then recomputed from x and `affine`.
        keep: return g as well, in grad's dtype.
    """
    g = _masked(grad if addend is None else grad + addend, x, affine, out, relu)
    mean, invstd = affine[0].view(1, -1, 1, 1), affine[1].view(1, -1, 1, 1)
    wide = g.to(torch.float64)
    products = wide * ((x.to(torch.float64) - mean) * invstd)
    sums = torch.stack([wide.sum((0, 2, 3)), products.sum((0, 2, 3))]).to(affine.dtype)
    return sums, g if keep else None


def backward_input(grad: Tensor, x: Tensor, affine: Tensor, sums: Tensor, count: float, relu: bool) -> Tensor:
    """Return the gradient of a normalisation's input, in x's dtype and layout.

    scale * (g - sums[0] / count - (x - mean) * invstd * sums[1] / count), where g is grad, masked as in
    :func:`backward_sums` if `relu`. ``count`` is the number of values per channel over all processes; infinity for
    statistics that were given.
    """
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
    """Return act(scale * x + shift + residual) in x's dtype, computed in that of `affine` and rounded once.

    ``residual_affine`` [4, C] normalises the residual as well: a shortcut with a convolution and normalisation.
    """
    y = _applied(x, affine)
    if residual is not None:
        y = y + (residual if residual_affine is None else _applied(residual, residual_affine))
    return (y.relu() if relu else y).to(x.dtype)


def _applied(x: Tensor, affine: Tensor) -> Tensor:
    return x.to(affine.dtype) * affine[2].view(1, -1, 1, 1) + affine[3].view(1, -1, 1, 1)
