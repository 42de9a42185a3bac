"""``strided_conv_chain`` against the eager operations: level 2 of a four-branch W48 fusion, channels-last.

Eager runs one convolution per arrow of the paper's Figure 3, then adds and activates. Triton where there is a CUDA
device; elsewhere the operator is its reference: the library's convolution with stacked weights.
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
from hrnet_fast.ops import strided_conv_chain

CHANNELS = 48
CUDA = torch.cuda.is_available()
# The inputs are h13 (C), h14 (C) and R_2 (2C); the outputs target 3 (4C) from h13 and R_2, and the continuing chains:
# h14 to C channels, R_2 to 2C. A stacked weight is zero where an output does not see an input.
INPUTS = (CHANNELS, CHANNELS, 2 * CHANNELS)
TARGET = 4 * CHANNELS
OUTPUTS = 7 * CHANNELS


def eager(xs: list[Tensor], weight: Tensor, bias: Tensor, addend: Tensor) -> Tensor:
    """One convolution per arrow, a sum, ReLU on the chains that continue."""
    c = CHANNELS
    one, other, branch = xs
    target = conv2d(one, weight[:TARGET, :c], bias[:TARGET], 2, 1)
    target = target + conv2d(branch, weight[:TARGET, 2 * c :], None, 2, 1) + addend[:, :TARGET]
    middle, last = slice(TARGET, TARGET + c), slice(TARGET + c, OUTPUTS)
    first = conv2d(other, weight[middle, c : 2 * c], bias[middle], 2, 1) + addend[:, middle]
    second = conv2d(branch, weight[last, 2 * c :], bias[last], 2, 1) + addend[:, last]
    return torch.cat([target, first.relu(), second.relu()], dim=1)


def fused(xs: list[Tensor], weight: Tensor, bias: Tensor, addend: Tensor) -> Tensor:
    return strided_conv_chain(
        xs, weight, bias=bias, addend=addend, relu=(TARGET, OUTPUTS), impl="triton" if CUDA else "reference"
    )


def stacked_weight(device: str, dtype: torch.dtype) -> Tensor:
    c = CHANNELS
    weight = torch.randn(OUTPUTS, sum(INPUTS), 3, 3, device=device) / (9 * sum(INPUTS)) ** 0.5
    weight[:TARGET, c : 2 * c] = 0
    weight[TARGET : TARGET + c, :c] = 0
    weight[TARGET : TARGET + c, 2 * c :] = 0
    weight[TARGET + c :, : 2 * c] = 0
    return weight.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def bench_strided_conv_chain(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, dtype: torch.dtype, direction: str
) -> None:
    torch.manual_seed(0)
    device = "cuda" if CUDA else "cpu"
    height, width = (64, 128) if measuring else (8, 12)
    shapes = [(1, c, height, width) for c in INPUTS] + [(1, OUTPUTS, height // 2, width // 2)]
    maps = [
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last) for shape in shapes
    ]
    *xs, addend = [m.requires_grad_() for m in maps]
    weight = stacked_weight(device, dtype)
    bias = torch.randn(OUTPUTS, device=device).to(dtype).requires_grad_()
    leaves = [*xs, weight, bias, addend]
    wide = [t.detach().double() for t in leaves]
    exact = eager(wide[:3], *wide[3:])
    calls: dict[str, Callable[[], object]] = {}
    for name, compute in (("eager", eager), ("fused", fused)):
        out = compute(xs, weight, bias, addend)
        # No time for a wrong result. On a GPU the library's float32 convolution may round operands to TF32.
        assert relative_error(out.detach(), exact) < (1e-2 if dtype == torch.bfloat16 else 2e-3 if CUDA else 1e-5)
        grad = torch.randn_like(out)
        calls[name] = (
            _forward(compute, (xs, weight, bias, addend)) if direction == "forward" else _backward(out, leaves, grad)
        )
    case = Case("operators", f"strided_conv_chain {CHANNELS}x{height}x{width}", direction, dtype)
    seconds = session.operator(case, calls, moving=leaves if direction == "forward" else [*leaves, grad])
    benchmark.extra_info.update({f"{name}_ms": round(value * 1e3, 3) for name, value in seconds.items()})
    benchmark.extra_info["speed_up"] = round(seconds["eager"] / seconds["fused"], 2)
    benchmark.pedantic(calls["fused"], rounds=7 if measuring else 1, warmup_rounds=int(measuring))
    if measuring:
        print(f"\n{direction} {dtype} on {device}: {benchmark.extra_info}")


def _forward(compute: Callable[..., Tensor], arguments: tuple[object, ...]) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return compute(*arguments)

    return call


def _backward(out: Tensor, leaves: list[Tensor], grad: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)
