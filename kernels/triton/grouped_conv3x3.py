"""``grouped_conv3x3`` in Triton: the 3x3 convolutions of all branches of a stage in one persistent launch."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hrnet_fast.implementations import interpreting
from hrnet_fast.kernels.packing import PAD, places
from hrnet_fast.kernels.triton.grouped_conv3x3_kernels import grouped_conv3x3_kernel
from hrnet_fast.kernels.triton.launch import launch

# Programs per multiprocessor: while one waits for memory another multiplies.
RESIDENT = 2

# The kernel's tuples of integers.
NUMBERS = (
    "in_channels", "channels", "heights", "widths", "strides_n", "strides_c", "strides_h", "strides_w",
    "residuals_n", "residuals_c", "residuals_h", "residuals_w", "weight_at", "bias_at", "first_tiles",
)  # fmt: skip


def unspecialised(number: int) -> int:
    """Return an odd number above 1, which kernels turn back.

    Triton compiles another kernel for a 1 and for what 16 divides, in tuples against all orders: here for every mix
    of sizes. What the kernel gains from knowing about divisors, UNIT tells it.
    """
    return 2 * number + 3


def tile(
    sizes: Sequence[int], channels: Sequence[int], pixels: Sequence[int], slots: int, itemsize: int,
    tensor_cores: bool, narrow: bool,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Pixels, output and input channels of a program's tile, and its warps.

    `slots` is how many programs run at a time; `narrow`, whether loads take 8 bytes or more, at 32-bit offsets: else
    more threads share the addresses. Outside the tensor cores all operands are in registers, so tiles are small.
    """
    if not tensor_cores:
        return 32, 32, 16, 4
    # Every step of the sum waits for memory, so there should be few of them, even where padding fills a part.
    block_i = min(128 // itemsize, max(32, triton.next_power_of_2(max(sizes))))
    # Wide tiles read the pixels less often; narrow ones waste less on padding, and there are more of them. Branches of
    # a stage do equal work, so the mean of the padding counts.
    small, large = (sum(triton.cdiv(c, block) * block / c for c in channels) for block in (32, 64))
    full = _tiles(pixels, channels, 64, 64) >= slots
    return 64, 64 if full and large <= 1.1 * small else 32, block_i, 4 if narrow else 8


def _tiles(pixels: Sequence[int], channels: Sequence[int], block_p: int, block_c: int) -> int:
    return sum(triton.cdiv(p, block_p) * triton.cdiv(c, block_c) for p, c in zip(pixels, channels, strict=True))


class Map(NamedTuple):
    """What a launch depends on of a tensor [N, C, H, W]."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]


class LaunchPlan(NamedTuple):
    """Everything of a launch but its tensors.

    Attributes:
        order: the branches as the kernel takes them.
        programs: how many are started.
        numbers: the kernel's arguments behind its tensors.
        constants: its constexpr arguments and options.
    """

    order: tuple[int, ...]
    programs: int
    numbers: tuple[Any, ...]
    constants: dict[str, Any]


def far(maps: Sequence[Map], elements: int) -> bool:
    """Whether offsets need 64 bits: within `maps`, or within a result of so many `elements`.

    A tile reaches beyond the last pixel.
    """
    reach = [sum((n - 1) * step for n, step in zip(m.shape, m.stride, strict=True)) for m in maps]
    return max(*reach, elements) + PAD >= 2**31


def unit(maps: Sequence[Map], channels: Sequence[int]) -> int:
    """How many elements always lie in one aligned run: the power of two, up to 16, that divides all steps.

    Triton itself asks whether 16 divides them, which 40 channels of W40 fail that lie in runs of 8, and W18's of 2.
    """
    return math.gcd(16, *channels, *(m.stride[d] for m in maps for d in (0, 2, 3)), *(m.shape[1] for m in maps))


def tf32() -> bool:
    """Whether the library's float32 convolutions may round operands to TF32; this one then does."""
    # Not `allow_tf32`: it raises where convolutions and recurrent networks were told apart.
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")


@functools.cache
def _slots(device: torch.device) -> int:
    """How many programs run at a time. Interpreted, few: each then loops, as on a device."""
    count = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return RESIDENT * count


def _branch_numbers(
    x: Map, residual: Map | None, channels: int, run: int, weight_at: int, bias_at: int
) -> dict[str, int]:
    """Return the kernel's integers of one branch, by the names of :data:`NUMBERS` without ``first_tiles``."""
    divisors = (run, 1, run, run)  # of strides: the kernel multiplies by UNIT
    added = (0, 0, 0, 0) if residual is None else residual.stride
    return {
        "in_channels": x.shape[1] // run, "channels": channels // run, "heights": x.shape[2], "widths": x.shape[3],
        **{f"strides_{d}": n // by for d, n, by in zip("nchw", x.stride, divisors, strict=True)},
        **{f"residuals_{d}": n // by for d, n, by in zip("nchw", added, divisors, strict=True)},
        "weight_at": weight_at // PAD, "bias_at": bias_at // PAD,
    }  # fmt: skip


# Cached: planning takes longer than the kernel does on small maps, and a network repeats its sizes.
@functools.lru_cache(maxsize=1024)
def launch_plan(
    xs: tuple[Map, ...], residuals: tuple[Map | None, ...], channels: tuple[int, ...], slots: int, itemsize: int,
    exact: bool,
) -> LaunchPlan:  # fmt: skip
    """Return how to launch the kernel.

    Args:
        xs, residuals, channels: of the branches; channels are those of the results.
        slots: programs that run at a time.
        itemsize: bytes of an element.
        exact: whether products are float32, which tensor cores cannot compute.

    Post: branches are ordered by the length of their sums, the longest first; tiles are numbered in this order.
    """
    sizes, maps = [x.shape[1] for x in xs], [*xs, *(r for r in residuals if r is not None)]
    pixels = [x.shape[0] * x.shape[2] * x.shape[3] for x in xs]
    last = all(m.stride[1] == 1 or m.shape[1] == 1 for m in maps)
    run = unit(maps, channels) if last else 1
    wide = far(maps, max(p * c for p, c in zip(pixels, channels, strict=True)))
    block_p, block_c, block_i, warps = tile(
        sizes, channels, pixels, slots, itemsize, not exact, run * itemsize > 4 and not wide
    )
    order = sorted(range(len(xs)), key=lambda k: -sizes[k])
    tiles = [_tiles(pixels[k : k + 1], channels[k : k + 1], block_p, block_c) for k in order]
    *first, total = itertools.accumulate(tiles, initial=0)
    weight_at, bias_at = places(list(zip(channels, sizes, strict=True)))
    rows = [
        {**_branch_numbers(xs[k], residuals[k], channels[k], run, weight_at[k], bias_at[k]), "first_tiles": begin}
        for k, begin in zip(order, first, strict=True)
    ]
    columns = [tuple(unspecialised(row[name]) for row in rows) for name in NUMBERS]
    constants = {
        "BRANCHES": len(xs), "ADDED": sum(1 << j for j, k in enumerate(order) if residuals[k]), "LAST": last,
        "UNIT": run, "WIDE": wide, "PRECISION": "ieee" if exact else "tf32", "PADDING": PAD,
        "BLOCK_P": block_p, "BLOCK_C": block_c, "BLOCK_I": block_i, "num_warps": warps,
    }  # fmt: skip
    return LaunchPlan(tuple(order), min(total, slots), (*columns, xs[0].shape[0], total), constants)


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
    """Return act(conv3x3(x_k) + bias_k + residual_k), channels-last, of weights and biases as packing lays them out.

    A residual of one dimension is an absent one.
    """
    batch, device, dtype = xs[0].shape[0], xs[0].device, xs[0].dtype
    shapes = [(batch, c, *x.shape[2:]) for x, c in zip(xs, channels, strict=True)]
    outs = [torch.empty(s, dtype=dtype, device=device, memory_format=torch.channels_last) for s in shapes]
    if batch == 0:
        return outs
    exact = dtype == torch.float32 and not tf32()
    added = tuple(_map(r) if r.dim() == 4 else None for r in residuals)
    how = launch_plan(tuple(map(_map, xs)), added, tuple(channels), _slots(device), dtype.itemsize, exact)
    launch(
        grouped_conv3x3_kernel, (how.programs,), device,
        tuple(outs[k] for k in how.order), tuple(xs[k] for k in how.order),
        tuple(outs[k] if added[k] is None else residuals[k] for k in how.order), weight, bias, *how.numbers,
        RELU=relu, WIDEN=interpreting(), **how.constants,
    )  # fmt: skip
    return outs
