"""``fuse_sum`` in plain PyTorch: the oracle of the fused operator."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hrnet_fast.reference.modularized_block import resize


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
        term = resize(term, (size[0], size[1]), mode, align_corners)  # type: ignore[arg-type]
        total = term if total is None else total + term
    assert total is not None
    return total.relu() if relu else total
