"""``upsample_conv1x1_sum`` against the eager operations: target 1 of a four-branch W48 fusion, channels-last.

Eager runs the 1x1 convolutions at low resolution, then upsamples and adds. Triton where there is a CUDA device;
elsewhere the operator is its reference, and the figure says what the operator itself costs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness import Case, Session
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, relu_

from hrnet_fast.measure import relative_error
from hrnet_fast.ops import upsample_conv1x1_sum

CHANNELS = 48
CUDA = torch.cuda.is_available()


def eager(xs: list[Tensor], weights: list[Tensor | None], bias: Tensor, mode: str) -> Tensor:
    """What a fusion unit with folded normalisations runs today; the bias is one of its convolutions'."""
    total = xs[0]
    for k, (x, weight) in enumerate(zip(xs[1:], weights[1:], strict=True)):
        assert weight is not None
        term = conv2d(x, weight[:, :, None, None], bias if k == 0 else None)
        total = total + interpolate(term, size=total.shape[-2:], mode=mode)
    return relu_(total)


def fused(xs: list[Tensor], weights: list[Tensor | None], bias: Tensor, mode: str) -> Tensor:
    return upsample_conv1x1_sum(xs, weights, bias=bias, mode=mode, impl="triton" if CUDA else "reference")


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def bench_upsample_conv1x1_sum(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, dtype: torch.dtype, mode: str, direction: str
) -> None:
    torch.manual_seed(0)
    device = "cuda" if CUDA else "cpu"
    height, width = (128, 256) if measuring else (16, 24)
    xs = [torch.randn(1, CHANNELS * f, height // f, width // f, device=device).to(dtype) for f in (1, 2, 4, 8)]
    xs = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for x in xs]
    matrices = [torch.randn(CHANNELS, x.shape[1], device=device) / x.shape[1] ** 0.5 for x in xs[1:]]
    weights = [None, *(m.to(dtype).requires_grad_() for m in matrices)]
    bias = torch.randn(CHANNELS, device=device).to(dtype).requires_grad_()
    leaves = [*xs, *weights[1:], bias]
    wide = [[None if t is None else t.detach().double() for t in ts] for ts in (xs, weights, [bias])]
    exact = eager(wide[0], wide[1], wide[2][0], mode)  # type: ignore[arg-type]
    calls: dict[str, Callable[[], object]] = {}
    for name, compute in (("eager", eager), ("fused", fused)):
        out = compute(xs, weights, bias, mode)
        # No time for a wrong result. On a GPU the library's float32 convolution may round operands to TF32.
        assert relative_error(out.detach(), exact) < (1e-2 if dtype == torch.bfloat16 else 2e-3 if CUDA else 1e-5)
        grad = torch.randn_like(out)
        calls[name] = (
            _forward(compute, (xs, weights, bias, mode)) if direction == "forward" else _backward(out, leaves, grad)
        )
    case = Case("operators", f"upsample_conv1x1_sum {mode} {CHANNELS}x{height}x{width}", direction, dtype)
    seconds = session.operator(case, calls, moving=leaves if direction == "forward" else [*leaves, grad])
    benchmark.extra_info.update({f"{name}_ms": round(value * 1e3, 3) for name, value in seconds.items()})
    benchmark.extra_info["speed_up"] = round(seconds["eager"] / seconds["fused"], 2)
    benchmark.pedantic(calls["fused"], rounds=7 if measuring else 1, warmup_rounds=int(measuring))
    if measuring:
        print(f"\n{direction} {mode} {dtype} on {device}: {benchmark.extra_info}")


def _forward(compute: Callable[..., Tensor], arguments: tuple[object, ...]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return compute(*arguments)

    return call


def _backward(out: Tensor, leaves: list[Tensor], grad: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)
