"""``grouped_conv3x3`` against the eager operations: one convolution of all branches of W32's last stage, channels-last.

Eager convolves, adds and activates branch after branch, weights with their normalisations folded. Triton where there is
a CUDA device; elsewhere the operator is its reference, and there is nothing to gain. Weights are packed before.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness import Case, Session
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import conv2d

from hrnet_fast.measure import relative_error
from hrnet_fast.ops import grouped_conv3x3, pack_grouped_conv3x3

CHANNELS = (32, 64, 128, 256)
CUDA = torch.cuda.is_available()


def eager(xs: list[Tensor], weights: list[Tensor], biases: list[Tensor], residuals: list[Tensor]) -> list[Tensor]:
    return [(conv2d(x, w, b, padding=1) + r).relu() for x, w, b, r in zip(xs, weights, biases, residuals, strict=True)]


def joined(outs: list[Tensor]) -> Tensor:
    return torch.cat([out.flatten() for out in outs])


@pytest.mark.parametrize("size", [(64, 48), (128, 256)], ids=["pose", "segmentation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def bench_grouped_conv3x3(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    device = "cuda" if CUDA else "cpu"
    sizes = [(s[0] >> k, s[1] >> k) for k, s in enumerate([size if measuring else (16, 8)] * len(CHANNELS))]
    xs, residuals = (
        [
            torch.randn(1, c, *s, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
            for c, s in zip(CHANNELS, sizes, strict=True)
        ]
        for _ in range(2)
    )
    weights = [
        (torch.randn(c, c, 3, 3, device=device) / (9 * c) ** 0.5)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
        for c in CHANNELS
    ]
    biases = [torch.randn(c, device=device).to(dtype) for c in CHANNELS]
    packed = pack_grouped_conv3x3(weights, biases)
    impl = "triton" if CUDA else "reference"
    contenders: dict[str, Callable[[], list[Tensor]]] = {
        "eager": lambda: eager(xs, weights, biases, residuals),
        "fused": lambda: grouped_conv3x3(xs, packed, residuals=residuals, impl=impl),
    }
    exact = joined(eager(*([t.double() for t in tensors] for tensors in (xs, weights, biases, residuals))))
    with torch.no_grad():
        for compute in contenders.values():
            # No time for a wrong result. On a GPU the library's float32 convolution may round operands to TF32.
            assert relative_error(joined(compute()), exact) < (
                1e-2 if dtype == torch.bfloat16 else 2e-3 if CUDA else 1e-5
            )
        case = Case("operators", f"grouped_conv3x3 {size[0]}x{size[1]}", "forward", dtype)
        seconds = session.operator(case, contenders, moving=[*xs, *weights, *biases, *residuals])
        benchmark.extra_info.update({f"{name}_ms": round(value * 1e3, 3) for name, value in seconds.items()})
        benchmark.extra_info["speed_up"] = round(seconds["eager"] / seconds["fused"], 2)
        benchmark.pedantic(contenders["fused"], rounds=7 if measuring else 1, warmup_rounds=int(measuring))
    if measuring:
        print(f"\n{size} {dtype} on {device}: {benchmark.extra_info}")
