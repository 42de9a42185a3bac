"""``strided_conv_chain`` against the eager operations: level 2 of a four-branch W48 fusion, channels-last.

Eager runs one convolution per arrow of the paper's Figure 3, then adds and activates. The operator is Triton's on a
CUDA device; elsewhere it is the reference: the library's convolution with stacked weights.
"""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import conv2d

from benchmarks.harness import Case, Session
from benchmarks.operators import DEVICE, TRITON_IMPL, each_direction, each_dtype, time_against_eager, tolerance
from hrnet_fast.ops import strided_conv_chain

CHANNELS = 48
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
    return strided_conv_chain(xs, weight, bias=bias, addend=addend, relu=(TARGET, OUTPUTS), impl=TRITON_IMPL)


def stacked_weight(dtype: torch.dtype) -> Tensor:
    c = CHANNELS
    weight = torch.randn(OUTPUTS, sum(INPUTS), 3, 3, device=DEVICE) / (9 * sum(INPUTS)) ** 0.5
    weight[:TARGET, c : 2 * c] = 0
    weight[TARGET : TARGET + c, :c] = 0
    weight[TARGET : TARGET + c, 2 * c :] = 0
    weight[TARGET + c :, : 2 * c] = 0
    return weight.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


@each_direction
@each_dtype
def bench_strided_conv_chain(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, dtype: torch.dtype, direction: str
) -> None:
    torch.manual_seed(0)
    height, width = (64, 128) if measuring else (8, 12)
    shapes = [(1, c, height, width) for c in INPUTS] + [(1, OUTPUTS, height // 2, width // 2)]
    maps = [
        torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last) for shape in shapes
    ]
    *xs, addend = [m.requires_grad_() for m in maps]
    weight = stacked_weight(dtype)
    bias = torch.randn(OUTPUTS, device=DEVICE).to(dtype).requires_grad_()
    case = Case("operators", f"strided_conv_chain {CHANNELS}x{height}x{width}", direction, dtype)
    time_against_eager(session, benchmark, case, (eager, fused), (xs, weight, bias, addend), limit=tolerance(dtype))
