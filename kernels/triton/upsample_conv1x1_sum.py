"""``upsample_conv1x1_sum`` in Triton: one launch for a whole target of the fusion.

A program owns a tile of pixels and output channels. Term by term it gathers the interpolated rows of a block of input
channels, in float32, rounds them to the operands' dtype and multiplies them by the weights; sums stay in float32 until
the store. Nothing of a term is written to memory. Every load goes by strides, so slices of channels need no copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.implementations import interpreting
from hrnet_fast.kernels.triton.fuse_sum import _neighbours, _offsets, _own_tile, _scale


@triton.jit
def _rows(term, y, x, i, mask, stride_c, stride_h, stride_w):
    """Float32 values [P, I] of one image at rows and columns [P] and channels [I]."""
    at = tl.cast(y, tl.int64) * stride_h + tl.cast(x, tl.int64) * stride_w
    return tl.load(term + at[:, None] + (tl.cast(i, tl.int64) * stride_c)[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _resampled(
    term, y, x, i, mask, h, w, height, width, stride_c, stride_h, stride_w, SAME: tl.constexpr, MODE: tl.constexpr
):
    """The term's channels [I] at the result's pixels [P]. What does not depend on `i` leaves the caller's loop."""
    if SAME:
        value = _rows(term, y, x, i, mask, stride_c, stride_h, stride_w)
    else:
        y0, y1, wy = _neighbours(MODE, _scale(MODE, h, height), y, h)
        x0, x1, wx = _neighbours(MODE, _scale(MODE, w, width), x, w)
        value = _rows(term, y0, x0, i, mask, stride_c, stride_h, stride_w)
        if MODE != 0:
            below = _rows(term, y1, x0, i, mask, stride_c, stride_h, stride_w)
            value = (1.0 - wy)[:, None] * value + wy[:, None] * below
            right = _rows(term, y0, x1, i, mask, stride_c, stride_h, stride_w)
            below = _rows(term, y1, x1, i, mask, stride_c, stride_h, stride_w)
            right = (1.0 - wy)[:, None] * right + wy[:, None] * below
            value = (1.0 - wx)[:, None] * value + wx[:, None] * right
    return value


@triton.jit
def upsample_conv1x1_sum_kernel(
    out, xs, weights, bias, in_channels, heights, widths, strides_n, strides_c, strides_h, strides_w,
    channels, height, width,
    TERMS: tl.constexpr, WEIGHTED: tl.constexpr, SAME: tl.constexpr, MODE: tl.constexpr, BIAS: tl.constexpr,
    RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    n, y, x, c, inside = _own_tile(channels, height, width, BLOCK_P, BLOCK_C)
    pixel = tl.program_id(0) % tl.cdiv(height * width, BLOCK_P) * BLOCK_P + tl.arange(0, BLOCK_P) < height * width
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for k in tl.static_range(TERMS):
        term = xs[k] + n.to(tl.int64) * strides_n[k]
        if (WEIGHTED >> k) & 1:
            size = in_channels[k]
            for begin in range(0, size, BLOCK_I):
                i = begin + tl.arange(0, BLOCK_I)
                rows = _resampled(
                    term, y, x, i, pixel[:, None] & (i < size)[None, :], heights[k], widths[k], height, width,
                    strides_c[k], strides_h[k], strides_w[k], (SAME >> k) & 1, MODE,
                )  # fmt: skip
                at = tl.cast(c, tl.int64)[None, :] * size + i[:, None]
                weight = tl.load(weights[k] + at, mask=(i < size)[:, None] & (c < channels)[None, :], other=0.0)
                rows = rows.to(weight.dtype)
                if WIDEN:  # the interpreter multiplies no bfloat16
                    rows, weight = rows.to(tl.float32), weight.to(tl.float32)
                total = tl.dot(rows, weight, total, input_precision="ieee")
        else:
            total += _resampled(
                term, y, x, c, inside, heights[k], widths[k], height, width, strides_c[k], strides_h[k], strides_w[k],
                (SAME >> k) & 1, MODE,
            )  # fmt: skip
    if BIAS:
        total += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.where(total < 0.0, 0.0, total)  # keeps NaN
    at = _offsets(CHANNELS_LAST, n, y, x, c, channels, height, width)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def tile(channels: int, itemsize: int) -> tuple[int, int, int]:
    """Pixels, output and input channels of a program's tile; tl.dot takes no fewer than 16 of each."""
    block_c = min(64, max(16, triton.next_power_of_2(channels)))
    return (64, block_c, 32) if itemsize == 2 else (32, min(32, block_c), 16)


def forward(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    size: tuple[int, int],
    mode: int,
    relu: bool,
    channels_last: bool,
) -> Tensor:
    """Return act(sum_k resample_k(weights[k] x_k) + bias), [N, C_out, *size]; an absent weight is an empty tensor."""
    channels = next((w.shape[0] for w in weights if w.numel()), xs[0].shape[1])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((xs[0].shape[0], channels, *size), dtype=xs[0].dtype, device=xs[0].device, memory_format=layout)
    if out.numel() == 0:
        return out
    block_p, block_c, block_i = tile(channels, out.element_size())
    grid = (out.shape[0] * triton.cdiv(size[0] * size[1], block_p), triton.cdiv(channels, block_c))
    upsample_conv1x1_sum_kernel[grid](
        out, tuple(xs), tuple(w.contiguous() for w in weights), out if bias is None else bias.contiguous(),
        *(tuple(x.shape[d] for x in xs) for d in (1, 2, 3)), *(tuple(x.stride(d) for x in xs) for d in range(4)),
        channels, size[0], size[1],
        TERMS=len(xs), WEIGHTED=sum(1 << k for k, w in enumerate(weights) if w.numel()),
        SAME=sum(1 << k for k, x in enumerate(xs) if tuple(x.shape[-2:]) == tuple(size)), MODE=mode,
        BIAS=bias is not None, RELU=relu, CHANNELS_LAST=channels_last, WIDEN=interpreting(),
        BLOCK_P=block_p, BLOCK_C=block_c, BLOCK_I=block_i,
    )  # fmt: skip
    return out
