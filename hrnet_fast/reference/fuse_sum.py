"""``fuse_sum`` in plain PyTorch: the oracle of the fused operator."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import interpolate


def fuse_sum(
    xs: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    size: tuple[int, int],
    mode: str,
    align_corners: bool,
    relu: bool,
) -> Tensor:
    """Return act(sum_k resample_k(scale_k * x_k + shift_k)) of [N, C, h_k, w_k] as [N, C, *size], step by step."""
    total: Tensor | None = None
    for x, scale, shift in zip(xs, scales, shifts, strict=True):
        term = x
        if scale is not None and shift is not None:
            term = term * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)
        if (x.shape[-2], x.shape[-1]) != tuple(size):
            align = align_corners if mode == "bilinear" else None
            term = interpolate(term, size=size, mode=mode, align_corners=align)
        total = term if total is None else total + term
    assert total is not None
    return total.relu() if relu else total
