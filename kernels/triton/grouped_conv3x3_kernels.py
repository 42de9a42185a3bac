"""Triton kernel of ``grouped_conv3x3``, launched by ``grouped_conv3x3.py``.

The tiles of all branches form one list, those with the longest sums first, and a program takes every so-many-th: the
few pixels of a deep branch and the many of a shallow one keep the multiprocessors busy together. A tile is an implicit
matrix product of pixels by channels over the nine taps; bias, residual and ReLU are applied to its float32 sums before
the one store. There is one loop, and so one set of registers, for all branches: a tile first picks its branch's sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _pick(values, branch, BRANCHES: tl.constexpr):
    """The element of a tuple that belongs to a branch known at run time only."""
    value = values[0]
    for k in tl.static_range(1, BRANCHES):
        value = tl.where(branch == k, values[k], value)
    return value


@triton.jit
def _number(values, branch, BRANCHES: tl.constexpr):
    """The element of a tuple of integers, as `unspecialised` passes them."""
    return (_pick(values, branch, BRANCHES) >> 1) - 1


@triton.jit
def _pixels(strides_n, strides_h, strides_w, n, y, x, branch, BRANCHES: tl.constexpr, UNIT: tl.constexpr):
    """Element offsets of pixels, and the strides of rows and columns."""
    stride_n = _number(strides_n, branch, BRANCHES) * UNIT
    stride_h = _number(strides_h, branch, BRANCHES) * UNIT
    stride_w = _number(strides_w, branch, BRANCHES) * UNIT
    return n * stride_n + y * stride_h + x * stride_w, stride_h, stride_w


@triton.jit
def _residual(
    residuals, strides_n, strides_c, strides_h, strides_w, n, y, x, c, pixel, count, branch,
    BRANCHES: tl.constexpr, ADDED: tl.constexpr, LAST: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Float32 values [P, C] of the branch's residual: zeros where it has none, by a load of no channels."""
    origin, _, _ = _pixels(strides_n, strides_h, strides_w, n, y, x, branch, BRANCHES, UNIT)
    stride_c = 1
    if not LAST:
        stride_c = _number(strides_c, branch, BRANCHES)
    at = origin[:, None] + (c.to(y.dtype) * stride_c)[None, :]
    mask = pixel[:, None] & (c < count * ((ADDED >> branch) & 1))[None, :]
    return tl.load(_pick(residuals, branch, BRANCHES) + at, mask=mask, other=0.0).to(tl.float32)


# Channels and the strides of pixels come divided by UNIT, and begins of weights and biases by PADDING: multiplied here,
# they tell the compiler what divides them, where a hint would not survive the choice of a branch.
@triton.jit(do_not_specialize=["images", "tiles"])
def grouped_conv3x3_kernel(
    outs, xs, residuals, weight, bias, in_channels, channels, heights, widths, strides_n, strides_c, strides_h,
    strides_w, residuals_n, residuals_c, residuals_h, residuals_w, weight_at, bias_at, first_tiles, images, tiles,
    BRANCHES: tl.constexpr, ADDED: tl.constexpr, RELU: tl.constexpr, LAST: tl.constexpr, UNIT: tl.constexpr,
    WIDE: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr, PADDING: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        branch = 0
        for k in tl.static_range(1, BRANCHES):
            branch += (tile >= (first_tiles[k] >> 1) - 1).to(tl.int32)
        size, count = _number(in_channels, branch, BRANCHES) * UNIT, _number(channels, branch, BRANCHES) * UNIT
        height, width = _number(heights, branch, BRANCHES), _number(widths, branch, BRANCHES)
        own = tile - _number(first_tiles, branch, BRANCHES)
        across = tl.cdiv(count, BLOCK_C)
        c = own % across * BLOCK_C + tl.arange(0, BLOCK_C)
        # A tile may reach over images: the 48 pixels of a deep branch fill none.
        p = own // across * BLOCK_P + tl.arange(0, BLOCK_P)
        i = tl.arange(0, BLOCK_I)
        all_pixels = images * height * width
        if WIDE:
            p = (own // across).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
            i = i.to(tl.int64)
            all_pixels = tl.cast(images, tl.int64) * height * width
        pixel = p < all_pixels
        y, x = p // width % height, p % width
        n = p // (height * width)

        origin, stride_h, stride_w = _pixels(strides_n, strides_h, strides_w, n, y, x, branch, BRANCHES, UNIT)
        stride_c = 1
        if not LAST:
            stride_c = _number(strides_c, branch, BRANCHES)
        image = _pick(xs, branch, BRANCHES)
        padded_in, padded = tl.cdiv(size, PADDING) * PADDING, tl.cdiv(count, PADDING) * PADDING
        filters = weight + _number(weight_at, branch, BRANCHES) * PADDING
        blocks = tl.cdiv(size, BLOCK_I)
        total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        # One loop over taps and channels: loads of the next step can be under way at every boundary.
        for step in range(9 * blocks):
            tap = step // blocks
            channel = step % blocks * BLOCK_I + i
            down, right = tap // 3 - 1, tap % 3 - 1
            good = pixel & (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
            at = (origin + (down * stride_h + right * stride_w))[:, None] + (channel * stride_c)[None, :]
            pixels = tl.load(image + at, mask=good[:, None] & (channel < size)[None, :], other=0.0)
            taps = tl.load(filters + ((tap * padded_in + channel) * padded)[:, None] + c[None, :])
            if WIDEN:  # the interpreter multiplies no bfloat16
                pixels, taps = pixels.to(tl.float32), taps.to(tl.float32)
            total = tl.dot(pixels, taps, total, input_precision=PRECISION)

        inside = pixel[:, None] & (c < count)[None, :]
        total += tl.load(bias + _number(bias_at, branch, BRANCHES) * PADDING + c)[None, :]
        if ADDED:
            total += _residual(
                residuals, residuals_n, residuals_c, residuals_h, residuals_w, n, y, x, c, pixel, count, branch,
                BRANCHES, ADDED, LAST, UNIT,
            )  # fmt: skip
        if RELU:
            total = tl.where(total < 0.0, 0.0, total)  # keeps NaN
        out = _pick(outs, branch, BRANCHES)
        tl.store(out + (p * count)[:, None] + c[None, :], total.to(out.dtype.element_ty), mask=inside)
