"""``fuse_sum`` against the eager operations: target 1 of a four-branch W48 fusion at 256x512, channels-last.

And as the upsampling of logits in losses. Every implementation that runs here, each on its device.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import interpolate, relu_

from benchmarks.harness import Case, Session
from benchmarks.operators import each_direction, each_dtype, time_against_eager
from hrnet_fast.implementations import describe
from hrnet_fast.ops import fuse_sum
from hrnet_fast.training.losses import upsample_logits

CHANNELS = 48


def eager(xs: list[Tensor], mode: str) -> Tensor:
    """The sum of a plain fusion: upsample, add, upsample, add, ..., ReLU in place."""
    total = xs[0]
    for x in xs[1:]:
        total = total + interpolate(x, size=total.shape[-2:], mode=mode)
    return relu_(total)


IMPLS = [
    pytest.param(name, marks=pytest.mark.skipif(not describe(name).usable, reason=describe(name).reason))
    for name in ("cpu", "cuda", "triton")
]


@each_direction
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@each_dtype
@pytest.mark.parametrize("impl", IMPLS)
def bench_fuse_sum(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, impl: str, dtype: torch.dtype, mode: str,
    direction: str,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    height, width = (256, 512) if measuring else (32, 64)
    device = "cpu" if impl == "cpu" else "cuda"
    xs = [torch.randn(1, CHANNELS, height // f, width // f).to(device, dtype) for f in (1, 2, 4, 8)]
    xs = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in xs]

    def fused(xs: list[Tensor], mode: str) -> Tensor:
        return fuse_sum(xs, mode=mode, impl=impl)

    limit = 1e-5 if dtype == torch.float32 else 1e-2
    case = Case("operators", f"fuse_sum {impl} {mode} {CHANNELS}x{height}x{width}", direction, dtype)
    time_against_eager(session, benchmark, case, (eager, fused), (xs, mode), limit=limit, keeps_inputs=False)


@each_direction
@pytest.mark.parametrize("align", [False, True], ids=["centres", "corners"])
@pytest.mark.parametrize("impl", IMPLS)
def bench_upsample_logits(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, impl: str, align: bool, direction: str
) -> None:
    """Logits of two images and 19 classes to four times their height and width, in float32, as losses take them."""
    torch.manual_seed(0)
    height, width = (64, 128) if measuring else (8, 16)
    size = (4 * height, 4 * width)
    x = torch.randn(2, 19, height, width, device="cpu" if impl == "cpu" else "cuda", requires_grad=True)

    def eager(x: Tensor) -> Tensor:
        return interpolate(x, size=size, mode="bilinear", align_corners=align)

    def fused(x: Tensor) -> Tensor:
        # On a CPU as losses call it: with the library's forward.
        return upsample_logits(x, size, align_corners=align, impl="auto" if impl == "cpu" else impl)

    case = Case("operators", f"upsample_logits {impl} {'corners' if align else 'centres'} 19x{size[0]}x{size[1]}",
                direction, torch.float32)  # fmt: skip
    time_against_eager(session, benchmark, case, (eager, fused), (x,), limit=1e-5, keeps_inputs=False)
