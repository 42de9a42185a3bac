"""``upsample_conv1x1_sum`` in plain PyTorch: the oracle of the fused operator."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import conv2d

from hrnet_fast.reference.fuse_sum import fuse_sum


def upsample_conv1x1_sum(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    bias: Tensor | None,
    size: tuple[int, int],
    mode: str,
    align_corners: bool,
    relu: bool,
) -> Tensor:
    """Return act(sum_k resample_k(conv1x1(x_k, weights[k])) + bias) as [N, C_out, *size], step by step.

    Convolved before upsampling: weights of interpolation sum to one, so the order changes the cost and no value.
    """
    terms = [x if w is None else conv2d(x, w[:, :, None, None]) for x, w in zip(xs, weights, strict=True)]
    absent = [None] * len(terms)
    total = fuse_sum(terms, absent, absent, size, mode, align_corners, False)
    if bias is not None:
        total = total + bias.to(total.dtype).view(1, -1, 1, 1)
    return total.relu() if relu else total
