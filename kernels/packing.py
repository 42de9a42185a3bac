"""Packing of the weights of several 3x3 convolutions in one tensor, for kernels that compute them in one launch.

Each weight is stored as [9, C_in, C_out], with both channel dimensions padded by zeros to whole tiles, so that kernels
load vectors without masks for any number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

PAD = 64  # a multiple of every kernel's tile


def padded(channels: int) -> int:
    """Return `channels` rounded up to whole tiles."""
    return -(-channels // PAD) * PAD


def places(channels: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return the offsets of the weights and biases of each convolution (C_out, C_in), and their total sizes."""
    sizes = [9 * padded(c_in) * padded(c_out) for c_out, c_in in channels]
    return list(accumulate(sizes, initial=0)), list(accumulate((padded(c) for c, _ in channels), initial=0))


def pack(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Return all weights [C_out, C_in, 3, 3] in one tensor, and all biases in another; an absent bias is zeros.

    Biases have the dtype of the sums: float32, or float64 for float64 weights.
    """
    channels = [(w.shape[0], w.shape[1]) for w in weights]
    weight_at, bias_at = places(channels)
    first = weights[0]
    weight = torch.zeros(weight_at[-1], dtype=first.dtype, device=first.device)
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    bias = torch.zeros(bias_at[-1], dtype=wide, device=first.device)
    for k, (given, added) in enumerate(zip(weights, biases, strict=True)):
        view = _view(weight, weight_at[k], channels[k])
        view.copy_(given.detach())
        if added is not None:
            bias[bias_at[k] : bias_at[k] + channels[k][0]] = added.detach()
    return weight, bias


def unpack(weight: Tensor, bias: Tensor, channels: Sequence[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights [C_out, C_in, 3, 3] and biases [C_out] of each convolution (C_out, C_in), as views."""
    weight_at, bias_at = places(channels)
    weights = [_view(weight, at, sizes) for at, sizes in zip(weight_at, channels, strict=False)]
    return weights, [bias[at : at + c] for at, (c, _) in zip(bias_at, channels, strict=False)]


def _view(weight: Tensor, at: int, channels: tuple[int, int]) -> Tensor:
    c_out, c_in = channels
    rows, columns = padded(c_in), padded(c_out)
    whole = weight[at : at + 9 * rows * columns].view(3, 3, rows, columns)
    return whole[:, :, :c_in, :c_out].permute(3, 2, 0, 1)
