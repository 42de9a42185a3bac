"""The inference engine's convolutions on maps with a zero halo against ``conv2d`` in channels-last: W32's shapes.

Both add a bias. Laying out maps and packing weights is not timed: the engine does it once. Values are random.
"""

from __future__ import annotations

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
    size, channels, out_channels, k, stride, padding = SHAPES[shape]
    size = size if measuring else (size[0] // 8, size[1] // 6)
    x = torch.randn(1, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(out_channels, channels, k, k) / (channels * k * k) ** 0.5).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(out_channels).to(dtype)
    halo = torch.classes.hrnet_fast.HaloConv(x, weight, bias, None, stride, [0, 0], padding)
    halo.run()
    exact = conv2d(x.double(), weight.double(), bias.double(), stride, k // 2)
    assert relative_error(halo.output(), exact) < (1e-5 if dtype == torch.float32 else 1e-2)
    with torch.inference_mode():
        case = Case("operators", f"conv_halo {shape}", "forward", dtype)
        calls = {"conv2d": lambda: conv2d(x, weight, bias, stride, k // 2), "halo": halo.run}
        moved = (x.numel() + weight.numel() + exact.numel()) * dtype.itemsize
        benchmark.extra_info["kernel"] = torch.ops.hrnet_fast.conv_halo_kernel(dtype == torch.bfloat16)
        medians = session.time_operator(benchmark, case, calls, 51, cost=(2 * halo.macs(), moved))
    benchmark.extra_info["gmacs_per_second"] = round(halo.macs() / medians["halo"] / 1e9, 1)
