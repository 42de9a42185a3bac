"""``upsample_conv1x1_sum`` against the eager operations: target 1 of a four-branch W48 fusion, channels-last.

Eager runs the 1x1 convolutions at low resolution, then upsamples and adds. The operator is Triton's
on a CUDA device; elsewhere it is the reference, whose time shows the operator's overhead.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, relu_

from benchmarks.harness import Case, Session
from benchmarks.operators import DEVICE, TRITON_IMPL, each_direction, each_dtype, time_against_eager, tolerance
from hrnet_fast.ops import upsample_conv1x1_sum

CHANNELS = 48


def eager(xs: list[Tensor], weights: list[Tensor | None], bias: Tensor, mode: str) -> Tensor:
    """A plain fusion with folded normalisations; one of its convolutions has the bias."""
    total = xs[0]
    for k, (x, weight) in enumerate(zip(xs[1:], weights[1:], strict=True)):
        assert weight is not None
        term = conv2d(x, weight[:, :, None, None], bias if k == 0 else None)
        total = total + interpolate(term, size=total.shape[-2:], mode=mode)
    return relu_(total)


def fused(xs: list[Tensor], weights: list[Tensor | None], bias: Tensor, mode: str) -> Tensor:
    return upsample_conv1x1_sum(xs, weights, bias=bias, mode=mode, impl=TRITON_IMPL)


@each_direction
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@each_dtype
def bench_upsample_conv1x1_sum(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, dtype: torch.dtype, mode: str, direction: str
) -> None:
    torch.manual_seed(0)
    height, width = (128, 256) if measuring else (16, 24)
    xs = [torch.randn(1, CHANNELS * f, height // f, width // f, device=DEVICE).to(dtype) for f in (1, 2, 4, 8)]
    xs = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in xs]
    matrices = [torch.randn(CHANNELS, x.shape[1], device=DEVICE) / x.shape[1] ** 0.5 for x in xs[1:]]
    weights = [None, *(m.to(dtype).requires_grad_() for m in matrices)]
    bias = torch.randn(CHANNELS, device=DEVICE).to(dtype).requires_grad_()
    case = Case("operators", f"upsample_conv1x1_sum {mode} {CHANNELS}x{height}x{width}", direction, dtype)
    time_against_eager(session, benchmark, case, (eager, fused), (xs, weights, bias, mode), limit=tolerance(dtype))
