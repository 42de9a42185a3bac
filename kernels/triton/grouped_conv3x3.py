"""``grouped_conv3x3`` in Triton: the 3x3 convolutions of all branches of a stage in one persistent launch.

The tiles of all branches form one list, ordered by the length of their sums, and program p takes every P-th tile from
the p-th on. So the few pixels of a deep branch and the many of a shallow one share the multiprocessors. A tile is an
implicit matrix product of pixels by channels over the nine taps. Bias, residual and ReLU are applied to its float32
sums before the only store. One loop serves all branches: a tile first selects the sizes of its branch at run time.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.implementations import interpreting
from hrnet_fast.kernels.packing import PAD, places

# Programs per multiprocessor, so that one multiplies while another waits for memory.
RESIDENT = 2

# The kernel's arguments that are tuples of integers.
NUMBERS = (
    "in_channels", "channels", "heights", "widths", "strides_n", "strides_c", "strides_h", "strides_w",
    "residuals_n", "residuals_c", "residuals_h", "residuals_w", "weight_at", "bias_at", "first_tiles",
)  # fmt: skip


@triton.jit
def _pick(values, branch, BRANCHES: tl.constexpr):
    """The element of a tuple at a branch index that is known at run time only."""
    value = values[0]
    for k in tl.static_range(1, BRANCHES):
        value = tl.where(branch == k, values[k], value)
    return value


@triton.jit
def _number(values, branch, BRANCHES: tl.constexpr):
    """The element of a tuple of integers that `unspecialised` encoded."""
    return (_pick(values, branch, BRANCHES) >> 1) - 1


def unspecialised(number: int) -> int:
    """Return the value encoded as an odd number above 1, which kernels decode.

    Triton specialises kernels for arguments that equal 1 or are divisible by 16, in tuples even with do_not_specialize:
    here that would be one kernel for every combination of sizes. UNIT carries the divisibility instead.
    """
    return 2 * number + 3


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
    """Float32 values [P, C] of the branch's residual, or zeros, by a fully masked load."""
    origin, _, _ = _pixels(strides_n, strides_h, strides_w, n, y, x, branch, BRANCHES, UNIT)
    stride_c = 1
    if not LAST:
        stride_c = _number(strides_c, branch, BRANCHES)
    at = origin[:, None] + (c.to(y.dtype) * stride_c)[None, :]
    mask = pixel[:, None] & (c < count * ((ADDED >> branch) & 1))[None, :]
    return tl.load(_pick(residuals, branch, BRANCHES) + at, mask=mask, other=0.0).to(tl.float32)


# Channels and pixel strides are passed divided by UNIT, and offsets of weights and biases divided by PADDING. The
# multiplications show the compiler their divisors; a hint would be lost when a branch is selected.
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
        # A tile may span images: 48 pixels of a deep branch do not fill one.
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
        # One loop over taps and channels, so that loads are pipelined across all iterations.
        for step in range(9 * blocks):
            tap = step // blocks
            channel = step % blocks * BLOCK_I + i
            down, right = tap // 3 - 1, tap % 3 - 1
            good = pixel & (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
            at = (origin + (down * stride_h + right * stride_w))[:, None] + (channel * stride_c)[None, :]
            pixels = tl.load(image + at, mask=good[:, None] & (channel < size)[None, :], other=0.0)
            taps = tl.load(filters + ((tap * padded_in + channel) * padded)[:, None] + c[None, :])
            if WIDEN:  # the interpreter cannot multiply bfloat16
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


def tile(
    sizes: Sequence[int], channels: Sequence[int], pixels: Sequence[int], slots: int, itemsize: int,
    tensor_cores: bool, narrow: bool,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Return pixels, output and input channels of a tile, and its warps.

    Args:
        slots: programs that run at a time.
        narrow: whether loads have at least 8 bytes and 32-bit offsets; otherwise more threads share the addresses.

    Without tensor cores all operands are in registers, so tiles are small.
    """
    if not tensor_cores:
        return 32, 32, 16, 4
    # Every step of the sum waits for memory, so few steps are better, even with some padding.
    block_i = min(128 // itemsize, max(32, triton.next_power_of_2(max(sizes))))
    # Wide tiles read the pixels less often. Narrow ones have less padding, and there are more of them. All branches of
    # a stage do equal work, so the mean padding decides.
    small, large = (sum(triton.cdiv(c, block) * block / c for c in channels) for block in (32, 64))
    full = _tiles(pixels, channels, 64, 64) >= slots
    return 64, 64 if full and large <= 1.1 * small else 32, block_i, 4 if narrow else 8


def _tiles(pixels: Sequence[int], channels: Sequence[int], block_p: int, block_c: int) -> int:
    return sum(triton.cdiv(p, block_p) * triton.cdiv(c, block_c) for p, c in zip(pixels, channels, strict=True))


class Map(NamedTuple):
    """The properties of a tensor [N, C, H, W] that a launch depends on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]


class LaunchPlan(NamedTuple):
    """The parameters of a launch, without its tensors.

    Attributes:
        order: order of the branches in the kernel.
        programs: number of programs.
        numbers: the kernel's arguments after its tensors.
        constants: the kernel's constexpr arguments and options.
    """

    order: tuple[int, ...]
    programs: int
    numbers: tuple[Any, ...]
    constants: dict[str, Any]


def far(maps: Sequence[Map], elements: int) -> bool:
    """Whether offsets within `maps` or within a result of `elements` need 64 bits.

    A tile may extend beyond the last pixel.
    """
    reach = [sum((n - 1) * step for n, step in zip(m.shape, m.stride, strict=True)) for m in maps]
    return max(*reach, elements) + PAD >= 2**31


def unit(maps: Sequence[Map], channels: Sequence[int]) -> int:
    """Return the length of aligned runs: the largest power of two up to 16 that divides all strides.

    Triton itself tests divisibility by 16 only. The 40 channels of W40 have runs of 8, and those of W18 runs of 2.
    """
    return math.gcd(16, *channels, *(m.stride[d] for m in maps for d in (0, 2, 3)), *(m.shape[1] for m in maps))


def tf32() -> bool:
    """Whether PyTorch's float32 convolutions may use TF32; this kernel follows that setting."""
    # `allow_tf32` raises an error if convolutions and recurrent networks have different settings.
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")


@functools.cache
def _slots(device: torch.device) -> int:
    """Return the number of programs that run at a time; few in the interpreter, so that each loops as on a device."""
    count = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return RESIDENT * count


# Cached: planning takes longer than the kernel on small maps, and a network repeats its sizes at every call.
@functools.lru_cache(maxsize=1024)
def launch_plan(
    xs: tuple[Map, ...], residuals: tuple[Map | None, ...], channels: tuple[int, ...], slots: int, itemsize: int,
    exact: bool,
) -> LaunchPlan:  # fmt: skip
    """Return how to launch the kernel; `exact` excludes tensor cores."""
    sizes, maps = [x.shape[1] for x in xs], [*xs, *(r for r in residuals if r is not None)]
    last = all(m.stride[1] == 1 or m.shape[1] == 1 for m in maps)
    run = unit(maps, channels) if last else 1
    pixels = [x.shape[0] * x.shape[2] * x.shape[3] for x in xs]
    wide = far(maps, max(p * c for p, c in zip(pixels, channels, strict=True)))
    narrow = run * itemsize > 4 and not wide
    block_p, block_c, block_i, warps = tile(sizes, channels, pixels, slots, itemsize, not exact, narrow)
    weight_at, bias_at = places(list(zip(channels, sizes, strict=True)))
    order = sorted(range(len(xs)), key=lambda k: -sizes[k])  # longest sums first
    tiles = [_tiles(pixels[k : k + 1], channels[k : k + 1], block_p, block_c) for k in order]
    first = list(itertools.accumulate(tiles, initial=0))
    steps = (run, 1, run, run)  # divisors of the strides
    strides = [[xs[k].stride for k in order], [(r.stride if (r := residuals[k]) else (0,) * 4) for k in order]]
    numbers = [
        [sizes[k] // run for k in order], [channels[k] // run for k in order],
        *([xs[k].shape[d] for k in order] for d in (2, 3)),
        *([stride[d] // steps[d] for stride in own] for own in strides for d in range(4)),
        [weight_at[k] // PAD for k in order], [bias_at[k] // PAD for k in order], first[:-1],
    ]  # fmt: skip
    constants = {
        "BRANCHES": len(xs), "ADDED": sum(1 << j for j, k in enumerate(order) if residuals[k]), "LAST": last,
        "UNIT": run, "WIDE": wide,
        "PRECISION": "ieee" if exact else "tf32", "PADDING": PAD, "BLOCK_P": block_p, "BLOCK_C": block_c,
        "BLOCK_I": block_i, "num_warps": warps,
    }  # fmt: skip
    branches = (tuple(unspecialised(number) for number in own) for own in numbers)
    return LaunchPlan(tuple(order), min(first[-1], slots), (*branches, xs[0].shape[0], first[-1]), constants)


def _map(tensor: Tensor) -> Map:
    return Map(tuple(tensor.shape), tensor.stride())


def forward(
    xs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    channels: Sequence[int],
    residuals: Sequence[Tensor],
    relu: bool,
) -> list[Tensor]:
    """Return act(conv3x3(x_k) + bias_k + residual_k), channels-last, of weights and biases packed by packing.pack.

    A residual of one dimension marks an absent one.
    """
    batch, device, dtype = xs[0].shape[0], xs[0].device, xs[0].dtype
    shapes = [(batch, c, *x.shape[2:]) for x, c in zip(xs, channels, strict=True)]
    outs = [torch.empty(s, dtype=dtype, device=device, memory_format=torch.channels_last) for s in shapes]
    if batch == 0:
        return outs
    exact = dtype == torch.float32 and not tf32()
    added = tuple(_map(r) if r.dim() == 4 else None for r in residuals)
    how = launch_plan(tuple(map(_map, xs)), added, tuple(channels), _slots(device), dtype.itemsize, exact)
    grouped_conv3x3_kernel[(how.programs,)](
        tuple(outs[k] for k in how.order), tuple(xs[k] for k in how.order),
        tuple(outs[k] if added[k] is None else residuals[k] for k in how.order), weight, bias, *how.numbers,
        RELU=relu, WIDEN=interpreting(), **how.constants,
    )  # fmt: skip
    return outs
