"""The C++ primitives of ``bn_act`` against the reference's, with stacked normalisations and masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from operator_cases import ROUNDING
from torch import Tensor

from hrnet_fast.implementations import build_info, describe
from hrnet_fast.norm_affine import Norm
from hrnet_fast.reference import bn_act as reference

if not describe("cpu").usable:
    pytest.skip(describe("cpu").reason, allow_module_level=True)

from hrnet_fast.ops.bn_act_primitives import load_bn_act

cpu = load_bn_act("cpu")
DTYPES = list(ROUNDING)
# Odd sizes, one pixel, more channels than a tile has values, fewer than a vector.
SHAPES = [(2, 18, 65, 97), (3, 6, 1, 1), (2, 700, 7, 5), (4, 3, 40, 56)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def make(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, mean: float = 0.0) -> Tensor:
    return (torch.randn(shape) + mean).to(dtype).contiguous(memory_format=layout)


def norms(*channels: int, dtype: torch.dtype = torch.float32) -> list[Norm]:
    generator = torch.Generator().manual_seed(3)

    def values() -> Tensor:
        return torch.rand(n, generator=generator).to(dtype) + 0.5

    made = []
    for n in channels:
        made.append(Norm(n, values(), values(), values(), values(), 0.1, 1e-5))
    return made


def distance(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_of_several_maps(dtype: torch.dtype, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    n, c, h, w = shape
    xs = [make(shape, dtype, layout, 3.0), make((n, 5, 2 * h, w), dtype, layout)]
    own, theirs = norms(c - 1, 1, 5), norms(c - 1, 1, 5)
    for a, b in zip(cpu.batch_affine(xs, own), reference.batch_affine(xs, theirs), strict=True):
        assert a.dtype == reference.math_dtype(dtype)
        assert distance(a[:3], b[:3]) <= (1e-12 if dtype == torch.float64 else 4e-7)
        assert distance(a[3], b[3]) <= (1e-11 if dtype == torch.float64 else 3e-6)  # differences of nearby numbers
    for a, b in zip(own, theirs, strict=True):
        assert a.running_mean is not None
        assert b.running_mean is not None
        assert a.running_var is not None
        assert b.running_var is not None
        torch.testing.assert_close(a.running_mean, b.running_mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(a.running_var, b.running_var, rtol=1e-6, atol=1e-7, equal_nan=True)
    for a, b in zip(xs, [cpu.statistics(x) for x in xs], strict=True):
        assert distance(b, reference.statistics(a)) <= (1e-12 if dtype == torch.float64 else 4e-7)
    running = cpu.running_affine(own, torch.float64)
    assert distance(running, reference.running_affine(own, torch.float64)) <= 1e-6


@pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_of_a_thousand_deviations(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = make((2, 18, 65, 97), torch.float32, layout, 1e3).to(dtype)
    exact = reference.statistics(x.double())
    assert distance(cpu.statistics(x)[1], exact[1]) <= 1e-6
    assert distance(cpu.statistics(x)[0], exact[0]) <= 2.0**-24


@pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_passes_over_a_map(dtype: torch.dtype, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x, grad, addend, out, residual = (make(shape, dtype, layout) for _ in range(5))
    c = shape[1]
    moments = [torch.rand(2, c, dtype=reference.math_dtype(dtype)) + 0.5 for _ in range(2)]
    affine, other = (reference.affine(*pair, norms(c)) for pair in moments)
    rounding = 2 * ROUNDING[dtype] if dtype != torch.float64 else 1e-13
    for extra, its in ((None, None), (residual, None), (residual, other)):
        for relu in (True, False):
            a, b = cpu.bn_act(x, affine, extra, relu, its), reference.bn_act(x, affine, extra, relu, its)
            assert a.stride() == x.stride() or x.numel() == x.shape[0] * x.shape[1]
            assert distance(a, b) <= rounding
    for relu, mask in ((True, out), (True, None), (False, None)):
        for part in (None, addend):
            sums, kept = cpu.backward_sums(grad, part, x, affine, mask, relu, True)
            wanted, masked = reference.backward_sums(grad, part, x, affine, mask, relu, True)
            assert kept is not None
            assert masked is not None
            assert distance(kept, masked) <= rounding
            assert distance(sums, wanted) <= (1e-12 if dtype == torch.float64 else 1e-5)
        for count in (float(x.numel() // c), float("inf")):
            a = cpu.backward_input(grad, x, affine, wanted, count, relu and mask is None)
            b = reference.backward_input(grad, x, affine, wanted, count, relu and mask is None)
            assert distance(a, b) <= rounding + 1e-7


def test_slices_of_channels_and_of_affines() -> None:
    """As fusions call them: parts of stacked maps."""
    for layout in FORMATS:
        x = make((2, 12, 9, 7), torch.float32, layout)
        affine = reference.batch_affine([x], norms(12))[0]
        a = cpu.bn_act(x[:, 4:], affine[:, 4:], None, True)
        assert distance(a, reference.bn_act(x[:, 4:], affine[:, 4:], None, True)) <= 1e-7


def test_given_statistics_need_no_sums() -> None:
    x, grad = (make((2, 4, 9, 7), torch.float32, torch.channels_last) for _ in range(2))
    affine, none = reference.batch_affine([x], norms(4))[0], torch.empty(0)
    found = cpu.backward_input(grad, x, affine, none, float("inf"), True)
    assert distance(found, reference.backward_input(grad, x, affine, none, float("inf"), True)) <= 1e-7


def test_an_infinity_stays_in_its_channel() -> None:
    for layout in FORMATS:
        x = make((2, 4, 9, 7), torch.float32, layout)
        x[0, 1, 0, 0] = float("inf")
        found, wanted = cpu.statistics(x), reference.statistics(x)
        assert not found[0, 1].isfinite()
        assert found[1, 1].isnan()
        others = [0, 2, 3]
        torch.testing.assert_close(found[:, others], wanted[:, others])


def test_results_do_not_depend_on_threads() -> None:
    x, grad = (make((2, 18, 65, 97), torch.float32, layout) for layout in FORMATS)
    affine = cpu.batch_affine([x], norms(18))[0]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((cpu.statistics(x), cpu.backward_sums(grad, None, x, affine, None, True, False)[0]))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no list of the processor's instructions")
def test_kernels_use_the_instructions_that_the_processor_has() -> None:
    """A clone asked for by a processor's name would leave every other processor with the baseline."""
    info = build_info()
    assert info is not None
    if info["instructions"] == "the compiler's choice":
        pytest.skip("this compiler makes no clones")
    flags = Path("/proc/cpuinfo").read_text()
    if " avx2 " in flags:
        assert info["instructions"] != "baseline"
    if " avx512vl " in flags and " avx512bw " in flags:
        assert "AVX-512" in info["instructions"]
