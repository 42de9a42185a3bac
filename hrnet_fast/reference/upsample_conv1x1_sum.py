"""``upsample_conv1x1_sum`` in plain PyTorch: the oracle of the fused operator."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import conv2d, interpolate


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
    total: Tensor | None = None
    for x, weight in zip(xs, weights, strict=True):
        term = x if weight is None else conv2d(x, weight[:, :, None, None])
        if (x.shape[-2], x.shape[-1]) != tuple(size):
            align = align_corners if mode == "bilinear" else None
            term = interpolate(term, size=size, mode=mode, align_corners=align)
        total = term if total is None else total + term
    assert total is not None
    if bias is not None:
        total = total + bias.to(total.dtype).view(1, -1, 1, 1)
    return total.relu() if relu else total
