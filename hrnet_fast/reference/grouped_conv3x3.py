"""``grouped_conv3x3`` by the library's convolution, branch after branch: the oracle, and the CPU implementation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d


def grouped_conv3x3(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    residuals: Sequence[Tensor | None],
    relu: bool,
) -> list[Tensor]:
    """Return act(conv3x3(x_k, weight_k, padding 1) + bias_k + residual_k) of every branch."""
    outs = []
    for x, weight, bias, residual in zip(xs, weights, biases, residuals, strict=True):
        out = conv2d(x, weight, None if bias is None else bias.to(x.dtype), padding=1)
        if residual is not None:
            out = out + residual
        outs.append(torch.relu(out) if relu else out)
    return outs
