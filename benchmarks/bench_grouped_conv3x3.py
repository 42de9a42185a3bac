"""``grouped_conv3x3`` against the eager operations: one convolution of all branches of W32's last stage, channels-last.

Eager convolves, adds and activates branch after branch. Normalisations are folded and weights are packed before. The
operator is Triton's on a CUDA device; elsewhere it is the reference, which has no advantage.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import conv2d

from benchmarks.harness import Case, Session
from benchmarks.operators import DEVICE, TRITON_IMPL, each_dtype, tolerance
from hrnet_fast.measure import Call, relative_error
from hrnet_fast.ops import grouped_conv3x3, pack_grouped_conv3x3

CHANNELS = (32, 64, 128, 256)


def eager(xs: list[Tensor], weights: list[Tensor], biases: list[Tensor], residuals: list[Tensor]) -> list[Tensor]:
    return [(conv2d(x, w, b, padding=1) + r).relu() for x, w, b, r in zip(xs, weights, biases, residuals, strict=True)]


def joined(outs: list[Tensor]) -> Tensor:
    return torch.cat([out.flatten() for out in outs])


@pytest.mark.parametrize("size", [(64, 48), (128, 256)], ids=["pose", "segmentation"])
@each_dtype
def bench_grouped_conv3x3(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    sizes = [(s[0] >> k, s[1] >> k) for k, s in enumerate([size if measuring else (16, 8)] * len(CHANNELS))]
    xs, residuals = (
        [
            torch.randn(1, c, *s, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last)
            for c, s in zip(CHANNELS, sizes, strict=True)
        ]
        for _ in range(2)
    )
    weights = [
        (torch.randn(c, c, 3, 3, device=DEVICE) / (9 * c) ** 0.5)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        for c in CHANNELS
    ]
    biases = [torch.randn(c, device=DEVICE).to(dtype) for c in CHANNELS]
    packed = pack_grouped_conv3x3(weights, biases)
    calls: dict[str, Call] = {
        "eager": lambda: eager(xs, weights, biases, residuals),
        "fused": lambda: grouped_conv3x3(xs, packed, residuals=residuals, impl=TRITON_IMPL),
    }
    exact = joined(eager(*([t.double() for t in tensors] for tensors in (xs, weights, biases, residuals))))
    with torch.no_grad():
        for compute in calls.values():
            assert relative_error(joined(compute()), exact) < tolerance(dtype)
        case = Case("operators", f"grouped_conv3x3 {size[0]}x{size[1]}", "forward", dtype)
        session.time_operator(benchmark, case, calls, moving=[*xs, *weights, *biases, *residuals])
