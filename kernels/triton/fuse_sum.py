"""``fuse_sum`` in Triton: one launch forward, one per term backward.

A program computes a tile of pixels and channels of the result. Source indices and weights are those of
``kernels/cuda/resample.h``, in float32. Backward gathers: every low-resolution element adds the gradients of the
outputs that it contributed to, without atomics, so results are deterministic. For sums per channel every program stores
a partial, and PyTorch reduces the partials.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.kernels.triton.launch import ceiling, launch

NEAREST, BILINEAR, ALIGNED = 0, 1, 2


@triton.jit
def _scale(MODE: tl.constexpr, size_in, size_out):
    if MODE == 2:
        steps = tl.cast(tl.maximum(size_out - 1, 1), tl.float32)
        return tl.where(size_out > 1, tl.cast(size_in - 1, tl.float32) / steps, 0.0)
    # tl.cast instead of .to: a size of 1 is specialised to a Python constant.
    return tl.cast(size_in, tl.float32) / tl.cast(size_out, tl.float32)


@triton.jit
def _neighbours(MODE: tl.constexpr, scale, dst, size_in):
    """Two source indices of each `dst`, and the weight of the second."""
    if MODE == 0:
        first = tl.minimum((dst.to(tl.float32) * scale).to(tl.int32), size_in - 1)
        return first, first, tl.zeros_like(dst).to(tl.float32)
    if MODE == 2:
        position = dst.to(tl.float32) * scale
    else:
        position = (dst.to(tl.float32) + 0.5) * scale - 0.5
    position = tl.maximum(position, 0.0)
    first = tl.minimum(position.to(tl.int32), size_in - 1)
    weight = tl.minimum(position - first.to(tl.float32), 1.0)
    return first, tl.minimum(first + 1, size_in - 1), weight


@triton.jit
def _offsets(CHANNELS_LAST: tl.constexpr, n, y, x, c, channels, height, width):
    """Element offsets [P, C] of pixels (y, x) [P] and channels [C] of image n; 64-bit, for more than 2^31 elements."""
    if CHANNELS_LAST:
        pixel = (n.to(tl.int64) * height + y) * width + x
        return pixel[:, None] * channels + c[None, :]
    plane = n.to(tl.int64) * channels + c
    return (plane[None, :] * height + y[:, None]) * width + x[:, None]


@triton.jit
def _own_tile(channels, height, width, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Image n, rows and columns [P], channels [C] and mask [P, C] of this program's tile.

    A tile is within one image, so that only scalars need 64 bits.
    """
    tiles = tl.cdiv(height * width, BLOCK_P)
    n = tl.program_id(0) // tiles
    p = (tl.program_id(0) % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (p < height * width)[:, None] & (c < channels)[None, :]
    return n, p // width, p % width, c, inside


@triton.jit
def fuse_sum_kernel(
    out, xs, scales, shifts, heights, widths, channels, height, width,
    TERMS: tl.constexpr, AFFINE: tl.constexpr, SAME: tl.constexpr, MODE: tl.constexpr, RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, y, x, c, inside = _own_tile(channels, height, width, BLOCK_P, BLOCK_C)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for k in tl.static_range(TERMS):
        if (SAME >> k) & 1:
            term = tl.load(
                xs[k] + _offsets(CHANNELS_LAST, n, y, x, c, channels, height, width), mask=inside, other=0.0
            ).to(tl.float32)
        else:
            h, w = heights[k], widths[k]
            y0, y1, wy = _neighbours(MODE, _scale(MODE, h, height), y, h)
            x0, x1, wx = _neighbours(MODE, _scale(MODE, w, width), x, w)
            term = tl.load(xs[k] + _offsets(CHANNELS_LAST, n, y0, x0, c, channels, h, w), mask=inside, other=0.0)
            term = term.to(tl.float32)
            if MODE != 0:
                b = tl.load(xs[k] + _offsets(CHANNELS_LAST, n, y1, x0, c, channels, h, w), mask=inside, other=0.0)
                term = (1.0 - wy)[:, None] * term + wy[:, None] * b.to(tl.float32)
                a = tl.load(xs[k] + _offsets(CHANNELS_LAST, n, y0, x1, c, channels, h, w), mask=inside, other=0.0)
                b = tl.load(xs[k] + _offsets(CHANNELS_LAST, n, y1, x1, c, channels, h, w), mask=inside, other=0.0)
                right = (1.0 - wy)[:, None] * a.to(tl.float32) + wy[:, None] * b.to(tl.float32)
                term = (1.0 - wx)[:, None] * term + wx[:, None] * right
        if (AFFINE >> k) & 1:
            scale = tl.load(scales[k] + c, mask=c < channels, other=0.0).to(tl.float32)
            shift = tl.load(shifts[k] + c, mask=c < channels, other=0.0).to(tl.float32)
            term = term * scale[None, :] + shift[None, :]
        total += term
    if RELU:
        total = tl.where(total < 0.0, 0.0, total)  # keeps NaN
    at = _offsets(CHANNELS_LAST, n, y, x, c, channels, height, width)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _reach(MODE: tl.constexpr, scale, src, size_in, size_out):
    """The first output that input `src` may contribute to. See Range in resample.h."""
    shift = 0.5 if MODE == 1 else 0.0
    low = src.to(tl.float32) + (0.0 if MODE == 0 else shift - 1.0)
    begin = (low / tl.maximum(scale, 1e-30) - shift).to(tl.int32) - 2
    begin = tl.where(src == 0, 0, begin)
    begin = tl.where(scale > 0.0, begin, 0)
    return tl.minimum(tl.maximum(begin, 0), size_out)


@triton.jit
def _weight(MODE: tl.constexpr, scale, dst, src, size_in):
    first, second, weight = _neighbours(MODE, scale, dst, size_in)
    return tl.where(first == src, 1.0 - weight, 0.0) + tl.where(second == src, weight, 0.0)


@triton.jit
def _masked(grad, out, at, mask, RELU: tl.constexpr):
    """The gradient at the given offsets, zero where the activation was zero."""
    g = tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        g = tl.where(tl.load(out + at, mask=mask, other=0.0).to(tl.float32) <= 0.0, 0.0, g)
    return g


@triton.jit
def fuse_sum_backward_kernel(
    grad, out, x_in, scale_in, grad_x, sums, products, channels, height, width, h, w, reach_y, reach_x,
    SAME: tl.constexpr, AFFINE: tl.constexpr, WANT_X: tl.constexpr, WANT_AFFINE: tl.constexpr, MODE: tl.constexpr,
    RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n, y, x, c, inside = _own_tile(channels, h, w, BLOCK_P, BLOCK_C)
    if SAME:
        at = _offsets(CHANNELS_LAST, n, y, x, c, channels, height, width)
        total = _masked(grad, out, at, inside, RELU)
    else:
        total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        scale_y, scale_x = _scale(MODE, h, height), _scale(MODE, w, width)
        begin_y = _reach(MODE, scale_y, y, h, height)
        begin_x = _reach(MODE, scale_x, x, w, width)
        for dy in range(reach_y):
            ys = begin_y + dy
            for dx in range(reach_x):
                columns = begin_x + dx
                good = inside & ((ys < height) & (columns < width))[:, None]
                at = _offsets(CHANNELS_LAST, n, ys, columns, c, channels, height, width)
                g = _masked(grad, out, at, good, RELU)
                weight = _weight(MODE, scale_y, ys, y, h) * _weight(MODE, scale_x, columns, x, w)
                # Zero times an infinite gradient would be NaN.
                total += tl.where((weight != 0.0)[:, None], g * weight[:, None], 0.0)
    at = _offsets(CHANNELS_LAST, n, y, x, c, channels, h, w)
    if WANT_AFFINE:
        value = tl.load(x_in + at, mask=inside, other=0.0).to(tl.float32)
        row = tl.program_id(0).to(tl.int64) * channels
        tl.store(sums + row + c, tl.sum(tl.where(inside, total, 0.0), axis=0), mask=c < channels)
        tl.store(products + row + c, tl.sum(tl.where(inside, total * value, 0.0), axis=0), mask=c < channels)
    if WANT_X:
        if AFFINE:
            total *= tl.load(scale_in + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        tl.store(grad_x + at, total.to(grad_x.dtype.element_ty), mask=inside)


@functools.cache
def tile(channels: int, channels_last: bool) -> tuple[int, int]:
    """Return pixels and channels of a tile, wide along contiguous memory.

    Larger tiles spill registers: the offsets of four terms, or of the gathered gradient on sm_80, do not fit.
    """
    if channels_last:
        block_c = min(64, max(16, triton.next_power_of_2(channels)))
        return 256 // block_c, block_c
    return 128, 4


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def forward(
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    size: tuple[int, int],
    mode: int,
    relu: bool,
    channels_last: bool,
) -> Tensor:
    """Return act(sum_k resample_k(scale_k * x_k + shift_k)), [N, C, *size]; absent affines are empty tensors."""
    batch, channels = xs[0].shape[:2]
    terms = [x.contiguous(memory_format=_format(channels_last)) for x in xs]
    out = torch.empty(
        (batch, channels, *size), dtype=xs[0].dtype, device=xs[0].device, memory_format=_format(channels_last)
    )
    if out.numel() == 0:
        return out
    same = sum(1 << k for k, x in enumerate(terms) if tuple(x.shape[-2:]) == tuple(size))
    affine = sum(1 << k for k, s in enumerate(scales) if s.numel())
    sizes = [tuple(x.shape[-2:]) for x in terms]
    if set(sizes) == {tuple(size)}:
        # One row in memory: Triton compiles the kernel anew for what divides the sizes, and there are fewer of these.
        size = (1, size[0] * size[1])
        sizes = [size] * len(terms)
    block_p, block_c = tile(channels, channels_last)
    grid = (batch * ceiling(size[0] * size[1], block_p), ceiling(channels, block_c))
    launch(
        fuse_sum_kernel, grid, out.device,
        out, tuple(terms), tuple(scales), tuple(shifts), tuple(h for h, _ in sizes), tuple(w for _, w in sizes),
        channels, size[0], size[1],
        TERMS=len(terms), AFFINE=affine, SAME=same, MODE=mode, RELU=relu, CHANNELS_LAST=channels_last,
        BLOCK_P=block_p, BLOCK_C=block_c,
    )  # fmt: skip
    return out


def _longest_reach(mode: int, size_in: int, size_out: int) -> int:
    """Return the largest number of outputs that one input can contribute to. See Range in resample.h."""
    if mode == ALIGNED and (size_in == 1 or size_out == 1):
        return size_out
    ratio = (size_out - 1) / (size_in - 1) if mode == ALIGNED else size_out / size_in
    middle = int(ratio * (1 if mode == NEAREST else 2)) + 6
    # Outputs before the first input's centre and after the last one's depend on that input alone.
    return min(size_out, middle + int(ratio) + 2)


def backward(
    grad: Tensor,
    out: Tensor,
    x: Tensor,
    scale: Tensor,
    size: tuple[int, int],
    mode: int,
    relu: bool,
    channels_last: bool,
    want_x: bool,
    want_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one term's gradients of x, scale and shift; those that are not needed are empty.

    Args:
        grad, out: the result's gradient and the result, [N, C, H, W].
        x: the term, or empty if no gradient of the affine is needed.
        size: (h, w) of the term.
    """
    none, layout = grad.new_empty(0), _format(channels_last)
    if not want_x and not want_affine:
        return none, none.new_empty(0), none.new_empty(0)
    grad, out = grad.contiguous(memory_format=layout), out.contiguous(memory_format=layout)
    batch, channels, height, width = out.shape
    h, w = size
    block_p, block_c = tile(channels, channels_last)
    rows = batch * ceiling(h * w, block_p)
    sums = products = torch.empty((rows, channels) if want_affine else 0, dtype=torch.float32, device=grad.device)
    if want_affine:
        products = torch.empty_like(sums)
    grad_x = none
    if want_x:
        grad_x = torch.empty((batch, channels, h, w), dtype=grad.dtype, device=grad.device, memory_format=layout)
    same = (h, w) == (height, width)
    if out.numel() and batch * h * w:
        launch(
            fuse_sum_backward_kernel, (rows, ceiling(channels, block_c)), out.device,
            grad, out, x.contiguous(memory_format=layout) if want_affine else grad, scale if scale.numel() else grad,
            grad_x if want_x else grad, sums, products, channels, height, width, h, w,
            1 if same else _longest_reach(mode, h, height), 1 if same else _longest_reach(mode, w, width),
            SAME=same, AFFINE=bool(scale.numel()), WANT_X=want_x, WANT_AFFINE=want_affine, MODE=mode, RELU=relu,
            CHANNELS_LAST=channels_last, BLOCK_P=block_p, BLOCK_C=block_c,
        )  # fmt: skip
    else:
        grad_x, sums, products = grad_x.zero_(), sums.zero_(), products.zero_()
    if not want_affine:
        return grad_x, none, none.new_empty(0)
    return grad_x, products.sum(0).to(scale.dtype), sums.sum(0).to(scale.dtype)
