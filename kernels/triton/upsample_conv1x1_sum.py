"""``upsample_conv1x1_sum`` in Triton: one launch for one target of a fusion.

A program computes a tile of pixels and output channels. For each term it gathers the interpolated pixels of a block of
input channels in float32, rounds them to the operands' dtype and multiplies them by the weights. Sums are float32 until
the store, and no term is written to memory. Loads use strides, so slices of channels need no copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.implementations import interpreting
from hrnet_fast.kernels.triton.fuse_sum import _neighbours, _offsets, _own_tile, _scale
from hrnet_fast.kernels.triton.launch import launch


@triton.jit
def _strided(y, x, i, stride_c, stride_h, stride_w, WIDE: tl.constexpr):
    """Element offsets [P, I] of rows and columns [P] and channels [I] within one image.

    They have 64 bits only if an image needs it: a tile of 64-bit offsets fills the registers.
    """
    if WIDE:
        y, x, i = y.to(tl.int64), x.to(tl.int64), i.to(tl.int64)
    return (y * stride_h + x * stride_w)[:, None] + (i * stride_c)[None, :]


@triton.jit
def _rows(term, y, x, i, mask, stride_c, stride_h, stride_w, WIDE: tl.constexpr):
    """Float32 values [P, I] of one image."""
    return tl.load(term + _strided(y, x, i, stride_c, stride_h, stride_w, WIDE), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _resampled(
    term, y, x, i, mask, h, w, height, width, stride_c, stride_h, stride_w,
    SAME: tl.constexpr, MODE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The term's channels [I] at the result's pixels [P]; what does not depend on `i` leaves the loop."""
    if SAME:
        value = _rows(term, y, x, i, mask, stride_c, stride_h, stride_w, WIDE)
    else:
        y0, y1, wy = _neighbours(MODE, _scale(MODE, h, height), y, h)
        x0, x1, wx = _neighbours(MODE, _scale(MODE, w, width), x, w)
        value = _rows(term, y0, x0, i, mask, stride_c, stride_h, stride_w, WIDE)
        if MODE != 0:
            below = _rows(term, y1, x0, i, mask, stride_c, stride_h, stride_w, WIDE)
            value = (1.0 - wy)[:, None] * value + wy[:, None] * below
            right = _rows(term, y0, x1, i, mask, stride_c, stride_h, stride_w, WIDE)
            below = _rows(term, y1, x1, i, mask, stride_c, stride_h, stride_w, WIDE)
            right = (1.0 - wy)[:, None] * right + wy[:, None] * below
            value = (1.0 - wx)[:, None] * value + wx[:, None] * right
    return value


@triton.jit
def upsample_conv1x1_sum_kernel(
    out, xs, weights, bias, in_channels, heights, widths, strides_n, strides_c, strides_h, strides_w,
    channels, height, width,
    TERMS: tl.constexpr, WEIGHTED: tl.constexpr, SAME: tl.constexpr, MODE: tl.constexpr, BIAS: tl.constexpr,
    RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, WIDEN: tl.constexpr,
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
                    strides_c[k], strides_h[k], strides_w[k], (SAME >> k) & 1, MODE, WIDE,
                )  # fmt: skip
                at = c[None, :] * size + i[:, None]
                if WIDE:
                    at = c.to(tl.int64)[None, :] * size + i[:, None]
                weight = tl.load(weights[k] + at, mask=(i < size)[:, None] & (c < channels)[None, :], other=0.0)
                rows = rows.to(weight.dtype)
                if WIDEN:  # the interpreter cannot multiply bfloat16
                    rows, weight = rows.to(tl.float32), weight.to(tl.float32)
                total = tl.dot(rows, weight, total, input_precision="ieee")
        else:
            total += _resampled(
                term, y, x, c, inside, heights[k], widths[k], height, width, strides_c[k], strides_h[k], strides_w[k],
                (SAME >> k) & 1, MODE, WIDE,
            )  # fmt: skip
    if BIAS:
        total += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.where(total < 0.0, 0.0, total)  # keeps NaN
    at = _offsets(CHANNELS_LAST, n, y, x, c, channels, height, width)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def wide(xs: Sequence[Tensor], weights: int) -> bool:
    """Whether an image of one of `xs`, or the number of `weights`, needs 64-bit offsets; the batch does not matter."""
    return weights >= 2**31 or any(sum((x.shape[d] - 1) * x.stride(d) for d in (1, 2, 3)) >= 2**31 for x in xs)


def vectors(xs: Sequence[Tensor]) -> bool:
    """Whether Triton can prove aligned 16-byte runs of channels, and so use vector loads."""
    runs = ((x.stride(1) == 1, x.shape[1], x.stride(2), x.stride(3), x.data_ptr()) for x in xs)
    return all(unit and not any(n % 16 for n in steps) for unit, *steps in runs)


def tile(channels: int, itemsize: int, narrow: bool) -> tuple[int, int, int, int]:
    """Return pixels, output and input channels of a tile, at least 16 each for tl.dot, and its warps.

    If every element has its own address (not `narrow`), four gathers of a larger tile do not fit the registers.
    """
    block_c = min(64, max(16, triton.next_power_of_2(channels)))
    if itemsize == 4:
        return 32, min(32, block_c), 16, 4
    return (64, block_c, 32, 4) if narrow else (64, block_c, 16, 8)


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
    far = wide(xs, max(w.numel() for w in weights))
    block_p, block_c, block_i, warps = tile(channels, out.element_size(), vectors(xs) and not far)
    grid = (out.shape[0] * triton.cdiv(size[0] * size[1], block_p), triton.cdiv(channels, block_c))
    launch(
        upsample_conv1x1_sum_kernel, grid, out.device,
        out, tuple(xs), tuple(w.contiguous() for w in weights), out if bias is None else bias.contiguous(),
        *(tuple(x.shape[d] for x in xs) for d in (1, 2, 3)), *(tuple(x.stride(d) for x in xs) for d in range(4)),
        channels, size[0], size[1],
        TERMS=len(xs), WEIGHTED=sum(1 << k for k, w in enumerate(weights) if w.numel()),
        SAME=sum(1 << k for k, x in enumerate(xs) if tuple(x.shape[-2:]) == tuple(size)), MODE=mode,
        BIAS=bias is not None, RELU=relu, CHANNELS_LAST=channels_last, WIDE=far, WIDEN=interpreting(),
        BLOCK_P=block_p, BLOCK_C=block_c, BLOCK_I=block_i, num_warps=warps,
    )  # fmt: skip
    return out
