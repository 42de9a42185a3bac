"""Batch normalisations as data, and the affine per channel that they amount to: arithmetic on [C] tensors.

Shared by the reference and by every backend of ``bn_act``.
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
    """The dtype that maps of `dtype` are normalised in: float32 for half types."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def norms_of_maps(xs: Sequence[Tensor], norms: Sequence[Norm]) -> list[list[Norm]]:
    """Return the normalisations of each map [N, C_k, H, W]; `norms` follow the channels of all maps in order."""
    if len(norms) == 1:
        return [[norms[0]]]
    left = iter(norms)
    shares: list[list[Norm]] = []
    for x in xs:
        shares.append([])
        channels = 0
        while channels < x.shape[1]:
            shares[-1].append(next(left))
            channels += shares[-1][-1].channels
    return shares


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
