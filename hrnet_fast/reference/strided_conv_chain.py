"""``strided_conv_chain`` by the library's convolution: the oracle, and the CPU implementation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d


def strided_conv_chain(
    xs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    relu: tuple[int, int],
) -> Tensor:
    """Return conv3x3(cat(xs), stride 2, padding 1) + bias + addend, the channels in range(*relu) through a ReLU."""
    joined = xs[0] if len(xs) == 1 else torch.cat(list(xs), dim=1)
    out = conv2d(joined, weight, None if bias is None else bias.to(joined.dtype), stride=2, padding=1)
    if addend is not None:
        out = out + addend
    begin, end = relu
    if begin < end:
        out[:, begin:end].relu_()  # in place: nothing else sees the sum, and backward needs no more than its result
    return out
