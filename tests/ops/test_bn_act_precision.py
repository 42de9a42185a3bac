"""Training-mode normalisation in float32 against float64: no further away than PyTorch's, in any shape and layout.

PyTorch adds contiguous maps in double and channels-last ones in float, pixel after pixel. The smaller error of the two
is the budget for both layouts.
"""

from __future__ import annotations

import pytest
import torch
from operator_cases import CPU
from torch import Tensor
from torch.nn.functional import batch_norm

from hrnet_fast.norm_affine import Norm
from hrnet_fast.ops.bn_act_primitives import bn_act_primitives

FORMATS = [torch.contiguous_format, torch.channels_last]
# One chunk and many, channels that fill vectors and tiles and ones that do not, planes below and above a tile.
SHAPES = [(4, 18, 32, 24), (2, 64, 64, 48), (4, 144, 4, 3), (2, 18, 97, 65), (1, 700, 7, 5), (2, 6, 200, 200)]
ROUNDING = 2.0**-24


def errors(results: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [((a.double() - e).norm() / e.norm()).item() for a, e in zip(results, exact, strict=True)]


def plain(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, batch mean, unbiased variance, and gradients of input, weight and bias."""
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight, bias)]
    mean, variance = torch.zeros_like(weight), torch.ones_like(weight)
    y = batch_norm(leaves[0], mean, variance, leaves[1], leaves[2], True, 1.0, 1e-5)
    return [y.detach(), mean, variance, *torch.autograd.grad(y, leaves, grad)]


def fused(impl: str, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    p = bn_act_primitives(impl, x)
    mean, variance = torch.zeros_like(weight), torch.ones_like(weight)
    affine = p.batch_affine([x], [Norm(x.shape[1], weight, bias, mean, variance, 1.0, 1e-5)])[0]
    sums, _ = p.backward_sums(grad, None, x, affine, None, False, False)
    dx = p.backward_input(grad, x, affine, sums, float(x.numel() // x.shape[1]), False)
    return [p.bn_act(x, affine, None, False), mean, variance, dx, sums[1], sums[0]]


@pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("ratio", [1.0, 10.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("impl", ["reference", CPU])
def test_no_further_from_float64_than_torch(
    impl: str, shape: tuple[int, ...], ratio: float, layout: torch.memory_format
) -> None:
    """``ratio`` is that of the channels' means to their deviations.

    Plain arithmetic rounds scale * x, which is as large as that ratio; kernels multiply and add in one rounding.
    """
    generator = torch.Generator().manual_seed(0)
    c = shape[1]
    spread, centre, weight, bias = (torch.randn(c, generator=generator) for _ in range(4))
    x = torch.randn(shape, generator=generator) * (spread.abs() + 0.5).view(-1, 1, 1) + ratio * centre.view(-1, 1, 1)
    grad = torch.randn(shape, generator=generator)
    weight = weight.abs() + 0.5
    exact = plain(*(t.double() for t in (x, weight, bias, grad)))
    budgets = [
        errors(plain(x.contiguous(memory_format=f), weight, bias, grad.contiguous(memory_format=f)), exact)
        for f in FORMATS
    ]
    found = errors(
        fused(impl, x.contiguous(memory_format=layout), weight, bias, grad.contiguous(memory_format=layout)), exact
    )
    names = ("result", "mean", "variance", "input's gradient", "weight's gradient", "bias's gradient")
    for name, own, *others in zip(names, found, *budgets, strict=True):
        roundings = ratio if impl == "reference" and name == "result" else 1.0
        assert own <= min(others) + roundings * ROUNDING, (name, own, others)
