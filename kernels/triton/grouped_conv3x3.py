"""``grouped_conv3x3`` in Triton: the 3x3 convolutions of all branches of a stage in one persistent launch.

The tiles of all branches form one list, those with the longest sums first, and a program takes every so-many-th: the
few pixels of a deep branch and the many of a shallow one keep the multiprocessors busy together. A tile is an implicit
matrix product of pixels by channels over the nine taps; bias, residual and ReLU are applied to its float32 sums before
the one store. There is one loop, and so one set of registers, for all branches: a tile first picks its branch's sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.implementations import interpreting
from hrnet_fast.kernels.packing import PAD, places

# Programs per multiprocessor: while one waits for memory another multiplies.
RESIDENT = 2

SIZES = ("in_channels", "channels", "heights", "widths", "strides_n", "strides_c", "strides_h", "strides_w",
         "residuals_n", "residuals_c", "residuals_h", "residuals_w", "weight_at", "bias_at", "first_tiles")  # fmt: skip


@triton.jit
def _pick(values, branch, BRANCHES: tl.constexpr):
    """The element of a tuple that belongs to a branch known at run time only."""
    value = values[0]
    for k in tl.static_range(1, BRANCHES):
        value = tl.where(branch == k, values[k], value)
    return value


@triton.jit
def _pixels(strides_n, strides_h, strides_w, n, y, x, branch, BRANCHES: tl.constexpr, UNIT: tl.constexpr):
    """Element offsets of pixels, and the strides of rows and columns."""
    stride_n = _pick(strides_n, branch, BRANCHES) * UNIT
    stride_h = _pick(strides_h, branch, BRANCHES) * UNIT
    stride_w = _pick(strides_w, branch, BRANCHES) * UNIT
    return n * stride_n + y * stride_h + x * stride_w, stride_h, stride_w


@triton.jit
def _residual(
    residuals, strides_n, strides_c, strides_h, strides_w, n, y, x, c, inside, branch,
    BRANCHES: tl.constexpr, ADDED: tl.constexpr, LAST: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Float32 values [P, C] of the branch's residual: zeros where it has none, by a load that is masked as a whole."""
    origin, _, _ = _pixels(strides_n, strides_h, strides_w, n, y, x, branch, BRANCHES, UNIT)
    stride_c = 1
    if not LAST:
        stride_c = _pick(strides_c, branch, BRANCHES)
    at = origin[:, None] + (c.to(y.dtype) * stride_c)[None, :]
    present = ((ADDED >> branch) & 1) != 0
    return tl.load(_pick(residuals, branch, BRANCHES) + at, mask=inside & present, other=0.0).to(tl.float32)


# Sizes are not specialised: every mix of sizes would compile a kernel of its own. Channels and the strides of pixels
# come divided by UNIT, and begins of weights by PADDING: multiplied here, they tell the compiler what divides them,
# where a hint would not survive the choice of a branch.
@triton.jit(do_not_specialize=[*SIZES, "images", "tiles"])
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
            branch += (tile >= first_tiles[k]).to(tl.int32)
        size, count = _pick(in_channels, branch, BRANCHES) * UNIT, _pick(channels, branch, BRANCHES) * UNIT
        height, width = _pick(heights, branch, BRANCHES), _pick(widths, branch, BRANCHES)
        own = tile - _pick(first_tiles, branch, BRANCHES)
        across = tl.cdiv(count, BLOCK_C)
        c = own % across * BLOCK_C + tl.arange(0, BLOCK_C)
        # A tile may reach over images: the 48 pixels of a deep branch fill none.
        p = own // across * BLOCK_P + tl.arange(0, BLOCK_P)
        i = tl.arange(0, BLOCK_I)
        all_pixels = images * height * width
        if WIDE:
            p = (own // across).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
            i = i.to(tl.int64)
            all_pixels = images.to(tl.int64) * height * width
        pixel = p < all_pixels
        y, x = p // width % height, p % width
        n = p // (height * width)

        origin, stride_h, stride_w = _pixels(strides_n, strides_h, strides_w, n, y, x, branch, BRANCHES, UNIT)
        stride_c = 1
        if not LAST:
            stride_c = _pick(strides_c, branch, BRANCHES)
        image = _pick(xs, branch, BRANCHES)
        padded_in, padded = tl.cdiv(size, PADDING) * PADDING, tl.cdiv(count, PADDING) * PADDING
        filters = weight + _pick(weight_at, branch, BRANCHES) * PADDING
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
        total += tl.load(bias + _pick(bias_at, branch, BRANCHES) + c)[None, :]
        if ADDED:
            total += _residual(
                residuals, residuals_n, residuals_c, residuals_h, residuals_w, n, y, x, c, inside, branch,
                BRANCHES, ADDED, LAST, UNIT,
            )  # fmt: skip
        if RELU:
            total = tl.where(total < 0.0, 0.0, total)  # keeps NaN
        out = _pick(outs, branch, BRANCHES)
        tl.store(out + (p * count)[:, None] + c[None, :], total.to(out.dtype.element_ty), mask=inside)


def tile(sizes: Sequence[int], channels: Sequence[int], tensor_cores: bool, narrow: bool) -> tuple[int, int, int, int]:
    """Pixels, output and input channels of a program's tile, and its warps.

    `narrow` where channels lie in runs that one load takes; else more threads share the addresses. Products outside
    the tensor cores keep all operands in registers, so their tiles are small.
    """
    if not tensor_cores:
        return 32, 32, 16, 4
    return 64, _block(channels), _block(sizes), 4 if narrow else 8


def _block(channels: Sequence[int]) -> int:
    """64 where padding to it costs little against 32. The mean counts: branches of a stage do equal work."""
    costs = [sum(triton.cdiv(c, block) * block / c for c in channels) for block in (32, 64)]
    return 64 if costs[1] <= 1.1 * costs[0] else 32


def far(tensors: Sequence[Tensor], outs: Sequence[Tensor], weights: int) -> bool:
    """Whether offsets need 64 bits. A tile that reaches beyond the last pixel computes offsets there as well."""
    reach = [sum((t.shape[d] - 1) * t.stride(d) for d in range(4)) for t in tensors] + [o.numel() for o in outs]
    return max([*reach, weights]) + PAD >= 2**31


def unit(tensors: Sequence[Tensor], channels: Sequence[int]) -> int:
    """How many elements always lie in one aligned run: the power of two, up to 16, that divides all steps.

    Triton itself asks whether 16 divides them, which 40 channels of W40 fail that lie in runs of 8, and W18's of 2.
    """
    steps = [t.stride(d) for t in tensors for d in (0, 2, 3)]
    return math.gcd(16, *channels, *steps, *(t.shape[1] for t in tensors))


def tf32() -> bool:
    """Whether the library's float32 convolutions may round operands to TF32; this one then does."""
    # Not `allow_tf32`: it raises where convolutions and recurrent networks were told apart.
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")


def _programs(device: torch.device, tiles: int) -> int:
    # Interpreted, few programs: each then loops, as on a device.
    count = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return min(tiles, RESIDENT * count)


def forward(
    xs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    channels: Sequence[int],
    residuals: Sequence[Tensor],
    relu: bool,
) -> list[Tensor]:
    """Return act(conv3x3(x_k) + bias_k + residual_k), channels-last, of weights and biases as packing lays them out.

    A residual of one dimension is an absent one.
    """
    batch, device, dtype = xs[0].shape[0], xs[0].device, xs[0].dtype
    shapes = [(batch, c, *x.shape[2:]) for x, c in zip(xs, channels, strict=True)]
    outs = [torch.empty(s, dtype=dtype, device=device, memory_format=torch.channels_last) for s in shapes]
    if batch == 0:
        return outs
    present = [r for r in residuals if r.dim() == 4]
    inputs = [*xs, *present]
    last = all(t.stride(1) == 1 or t.shape[1] == 1 for t in inputs)
    run = unit(inputs, channels) if last else 1
    exact = dtype == torch.float32 and not tf32()
    block_p, block_c, block_i, warps = tile([x.shape[1] for x in xs], channels, not exact, run * dtype.itemsize > 2)

    weight_at, bias_at = places([(c, x.shape[1]) for x, c in zip(xs, channels, strict=True)])
    order = sorted(range(len(xs)), key=lambda k: -xs[k].shape[1])  # the longest sums first
    first, tiles = [], 0
    for k in order:
        first.append(tiles)
        tiles += triton.cdiv(outs[k].numel() // channels[k], block_p) * triton.cdiv(channels[k], block_c)
    x, out = [xs[k] for k in order], [outs[k] for k in order]
    residual = [residuals[k] if residuals[k].dim() == 4 else outs[k] for k in order]
    steps = (run, 1, run, run)  # what strides come divided by
    grouped_conv3x3_kernel[(_programs(device, tiles),)](
        tuple(out), tuple(x), tuple(residual), weight, bias, tuple(t.shape[1] // run for t in x),
        tuple(t.shape[1] // run for t in out), *(tuple(t.shape[d] for t in out) for d in (2, 3)),
        *(tuple(t.stride(d) // steps[d] for t in x) for d in range(4)),
        *(tuple(t.stride(d) // steps[d] for t in residual) for d in range(4)),
        tuple(weight_at[k] // PAD for k in order), tuple(bias_at[k] for k in order), tuple(first), batch, tiles,
        BRANCHES=len(xs), ADDED=sum(1 << j for j, k in enumerate(order) if residuals[k].dim() == 4), RELU=relu,
        LAST=last, UNIT=run, WIDE=far(inputs, outs, weight.numel()), WIDEN=interpreting(),
        PRECISION="ieee" if exact else "tf32", PADDING=PAD, BLOCK_P=block_p, BLOCK_C=block_c, BLOCK_I=block_i,
        num_warps=warps,
    )  # fmt: skip
    return outs
