"""``bn_act``'s Triton kernels under the interpreter: the pieces against the reference's, and the operator whole.

The interpreter truncates where a device rounds to bfloat16, so that bfloat16 results may be one more rounding away.
"""

from __future__ import annotations

import pytest
import torch
from operator_cases import TRITON, device_of, interpreted

PIECES = """
import torch
from torch import Tensor
from hrnet_fast.kernels.triton import bn_act as triton
from hrnet_fast.reference import bn_act as reference

torch.manual_seed(0)
INFINITY = float("inf")


def norm(channels, **given):
    own = dict(weight=torch.randn(channels), bias=torch.randn(channels), running_mean=torch.randn(channels),
               running_var=torch.rand(channels) + 0.5, momentum=0.1, eps=1e-5)
    return reference.Norm(channels, **{**own, **given})


def copied(norms):
    return [reference.Norm(*(t.clone() if isinstance(t, Tensor) else t for t in n)) for n in norms]


def near(a, b, dtype=torch.float32):
    a, b = a.double(), b.double()
    rounding = {torch.float32: 2.0**-20, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[dtype]
    scale = b.abs().max().item() if b.numel() else 1.0
    assert torch.allclose(a, b, rtol=rounding, atol=rounding * max(1.0, scale)), (a - b).abs().max()


def check(shape, dtype, last, norms, partials, step):
    triton.PROGRAMS, triton.COMBINE["BLOCK_R"] = partials, step
    x = (torch.randn(shape) * 2 + 5).to(dtype)
    a, b = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    near(triton.statistics(x), reference.statistics(x))
    mine, theirs = copied(norms + norms), copied(norms + norms)
    affines = triton.batch_affine([x, 2 * x], mine), reference.batch_affine([x, 2 * x], theirs)
    for given, expected in zip(*affines):
        assert given.shape == expected.shape and given.dtype == torch.float32
        for row in range(4):
            near(given[row], expected[row])
    for given, expected in zip(mine, theirs):
        for k in (3, 4):
            if given[k] is not None:
                near(given[k], expected[k])
    affine = affines[1][0]
    if all(n.running_mean is not None for n in norms):
        near(triton.running_affine(norms, x.dtype), reference.running_affine(norms, torch.float32))
    for residual in (None, b):
        for relu in (False, True):
            out = triton.bn_act(x, affine, residual, relu)
            assert out.dtype == dtype and out.stride() == x.stride()
            expected = reference.bn_act(x, affine, residual, relu)
            near(out, expected, dtype)
        for relu in (False, True) if residual is None else ():
            for addend, activated in ((None, None), (b, reference.bn_act(x, affine, b, True) if relu else None)):
                sums = [m.backward_sums(a, addend, x, affine, activated, relu, True) for m in (triton, reference)]
                near(sums[0][1], sums[1][1], dtype)
                # Truncated, not rounded, by the interpreter: another gradient altogether.
                if addend is None or dtype == torch.float32:
                    near(sums[0][0], sums[1][0])
                assert triton.backward_sums(a, addend, x, affine, activated, relu, False)[1] is None
            for count in (x.numel() // shape[1], INFINITY):
                grads = [m.backward_input(a, x, affine, sums[1][0], count, relu) for m in (triton, reference)]
                assert grads[0].stride() == x.stride()
                near(grads[0], grads[1], dtype)


def stacked(channels):
    return [norm(2, weight=None), norm(1, bias=None, momentum=0.3), norm(channels - 3, eps=1e-3)]


check((2, 6, 5, 7), torch.float32, False, stacked(6), 1024, 32)
check((3, 18, 9, 6), torch.bfloat16, True, stacked(18), 3, 2)
check((2, 5, 1, 1), torch.float16, False, [norm(5, running_mean=None, running_var=None)], 1024, 32)
check((4, 1, 3, 1), torch.float32, True, [norm(1)], 1024, 32)
check((3, 3, 1, 300), torch.float32, False, [norm(3)], 4, 2)
check((1, 70, 9, 5), torch.float32, True, [norm(70)], 6, 32)

# A mean of a thousand deviations costs the variance nothing.
for dtype in (torch.float32, torch.bfloat16):
    x = (torch.randn(2, 4, 8, 40) * 4 + 4000).to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        moments, exact = triton.statistics(x.contiguous(memory_format=layout)), reference.statistics(x)
        assert ((moments[0] - exact[0]) / exact[0]).abs().max() < 2.0**-22
        assert ((moments[1] - exact[1]) / exact[1]).abs().max() < 2.0**-20, dtype

empty = torch.empty(0, 4, 3, 3)
sums, kept = triton.backward_sums(empty, None, empty, torch.ones(4, 4), None, True, True)
assert not sums.any() and kept.shape == empty.shape
assert triton.backward_input(empty, empty, torch.ones(4, 4), sums, 0, True).shape == empty.shape
assert triton.bn_act(empty, torch.ones(4, 4), None, True).shape == empty.shape

# NaN lets the gradient pass, as aten.threshold_backward does.
x = torch.tensor([1.0, -1.0, float("nan")]).view(1, 1, 1, 3)
affine = torch.tensor([0.0, 1.0, 1.0, 0.0]).view(4, 1)
kept = triton.backward_sums(torch.ones_like(x), None, x, affine, None, True, True)[1]
assert kept.flatten().tolist() == [1.0, 0.0, 1.0]
print("parity held")
"""

WHOLE = """
import torch
from test_bn_act import make_case, within_budget
from test_bn_act_contract import test_keeps_the_input_and_statistics as keeps

torch.manual_seed(0)
for size, dtype, last in (((5, 7), torch.float32, False), ((4, 9), torch.float16, True), ((1, 1), torch.float32, True)):
    for training in (True, False):
        for residual in (True, False):
            within_budget(make_case(size, dtype, channels_last=last, residual=residual, training=training), "triton", 4)
within_budget(make_case((6, 4), torch.bfloat16, channels_last=True), "triton", 6)
within_budget(make_case((12, 15), torch.float32, ratio=1e3, batch=2), "triton", 1e3)
keeps("triton", True, False)
print("parity held")
"""


OFFSETS = "import bn_act_tiles\n"


@pytest.mark.slow
@pytest.mark.processes
def test_triton_under_its_interpreter() -> None:
    interpreted(WHOLE + OFFSETS + PIECES)  # the pieces change sizes of launches


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", [TRITON])
def test_statistics_on_a_device(impl: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """What several processes exchange; one process alone never asks for it."""
    from hrnet_fast.kernels.triton import bn_act as triton
    from hrnet_fast.reference import bn_act as reference

    for shape in ((3, 18, 17, 25), (2, 70, 5, 1), (4, 1, 1, 1)):
        x = (torch.randn(shape) * 2 + 5).to(device_of(impl), dtype).contiguous(memory_format=layout)
        torch.testing.assert_close(triton.statistics(x), reference.statistics(x), rtol=2.0**-20, atol=2.0**-20)
