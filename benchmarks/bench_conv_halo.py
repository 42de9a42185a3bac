"""The inference engine's convolutions on maps with a zero halo against ``conv2d`` in channels-last: W32's shapes.

Both add a bias. Laying out maps and packing weights is not timed: the engine does it once. Values are random. Programs
of one step each work in one arena.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import conv2d

from benchmarks.harness import Case, Session
from benchmarks.operators import each_dtype
from hrnet_fast.implementations import describe
from hrnet_fast.measure import relative_error

if not describe("cpu").usable:
    pytest.skip(describe("cpu").reason, allow_module_level=True)

from hrnet_fast import _C

# (height, width), channels in and out, kernel, stride, channels of the buffer beside the slice
SHAPES = {
    "stem-1": ((256, 192), 3, 64, 3, 2, 0),
    "stem-2": ((128, 96), 64, 64, 3, 2, 0),
    "bottleneck-narrow": ((64, 48), 256, 64, 1, 1, 0),
    "bottleneck-window": ((64, 48), 64, 64, 3, 1, 0),
    "bottleneck-wide": ((64, 48), 64, 256, 1, 1, 0),
    "branch-1": ((64, 48), 32, 32, 3, 1, 0),
    "branch-2": ((32, 24), 64, 64, 3, 1, 0),
    "branch-3": ((16, 12), 128, 128, 3, 1, 0),
    "branch-4": ((8, 6), 256, 256, 3, 1, 0),
    "branch-1-of-w18": ((56, 56), 18, 18, 3, 1, 0),
    "branch-1-of-w48": ((128, 256), 48, 48, 3, 1, 0),
    "fusion-down": ((64, 48), 32, 128, 3, 2, 96),
    "fusion-up": ((32, 24), 256, 224, 1, 1, 0),
    "head": ((64, 48), 32, 17, 1, 1, 0),
}


@pytest.mark.parametrize("shape", SHAPES)
@each_dtype
def bench_conv_halo(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, dtype: torch.dtype, shape: str
) -> None:
    torch.manual_seed(0)
    kind = str(dtype).removeprefix("torch.")
    size, channels, out_channels, k, stride, padding = SHAPES[shape]
    size = size if measuring else (size[0] // 8, size[1] // 6)
    x = torch.randn(1, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(out_channels, channels, k, k) / (channels * k * k) ** 0.5).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(out_channels).to(dtype)
    exact = conv2d(x.double(), weight.double(), bias.double(), stride, k // 2)
    out = torch.empty(exact.shape, dtype=dtype)
    packed = _C.PackedConv(kind, weight.float().contiguous(), bias.float(), stride, (0, 0), padding == 0)
    maps = [(t.shape[2], t.shape[3], t.shape[1] + padding) for t in (x, out)]
    sizes = [_C.map_bytes(kind, 1, *sides) for sides in maps]
    arena, threads = torch.empty(sum(sizes) + 63, dtype=torch.uint8), torch.get_num_threads()

    def program(step: str, *arguments: Any) -> Callable[..., None]:
        made = _C.Program(kind)
        for offset, sides in zip((0, sizes[0]), maps, strict=True):
            made.buffer(offset, 1, *sides)
        getattr(made, step)(0, *arguments)
        made.finish(sum(sizes))
        return lambda inputs=(), outputs=(): made.run(inputs, outputs, arena, threads)

    program("input", (0, 0), 0, channels, None, None)([x])
    halo = program("conv", packed, (0, 0), (1, 0), None)
    halo()
    program("output", (1, 0), out_channels, 0)([], [out])
    assert relative_error(out, exact) < (1e-5 if dtype == torch.float32 else 1e-2)
    with torch.inference_mode():
        case = Case("operators", f"conv_halo {shape}", "forward", dtype)
        calls = {"conv2d": lambda: conv2d(x, weight, bias, stride, k // 2), "halo": halo}
        products = exact.numel() * channels * k * k
        moved = (x.numel() + weight.numel() + exact.numel()) * dtype.itemsize
        benchmark.extra_info["kernel"] = _C.conv_kernel(kind)
        medians = session.time_operator(benchmark, case, calls, 51, cost=(2 * products, moved))
    benchmark.extra_info["gmacs_per_second"] = round(products / medians["halo"] / 1e9, 1)
