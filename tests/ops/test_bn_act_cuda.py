"""The CUDA pieces of ``bn_act`` on a device against the reference's: several maps at once, masks, streams, graphs."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from test_bn_act_cpu import FORMATS, ROUNDING, SHAPES, distance, make, norms
from torch import Tensor

from hrnet_fast.implementations import describe
from hrnet_fast.norm_affine import Norm
from hrnet_fast.ops.bn_act_primitives import bn_act_primitives
from hrnet_fast.reference import bn_act as reference

pytestmark = [pytest.mark.device] + [
    pytest.mark.unavailable(state.reason) for state in (describe("cuda"),) if not state.usable
]


def on_device(norm: Norm) -> Norm:
    return Norm(norm.channels, *(None if t is None else t.cuda() for t in norm[1:5]), norm.momentum, norm.eps)


@pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
def test_statistics_of_several_maps(dtype: torch.dtype, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    n, c, h, w = shape
    xs = [make(shape, dtype, layout, 3.0).cuda(), make((n, 5, 2 * h, w), dtype, layout).cuda()]
    cuda = bn_act_primitives("cuda", xs[0])
    own, theirs = ([on_device(norm) for norm in norms(c - 1, 1, 5)] for _ in range(2))
    bound = 1e-12 if dtype == torch.float64 else 4e-7
    for a, b in zip(cuda.batch_affine(xs, own), reference.batch_affine(xs, theirs), strict=True):
        assert distance(a[:3], b[:3]) <= bound
        assert distance(a[3], b[3]) <= 10 * bound  # differences of nearby numbers
    for a, b in product(zip(own, theirs, strict=True), range(3, 5)):
        torch.testing.assert_close(a[0][b], a[1][b], rtol=1e-6, atol=1e-7, equal_nan=True)
    for x in xs:
        assert distance(cuda.statistics(x), reference.statistics(x)) <= bound
    running = cuda.running_affine(own, torch.float64)
    assert distance(running, reference.running_affine(own, torch.float64)) <= 1e-6


@pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
def test_passes_over_a_map(dtype: torch.dtype, shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x, grad, addend, out, residual = (make(shape, dtype, layout).cuda() for _ in range(5))
    c = shape[1]
    cuda = bn_act_primitives("cuda", x)
    affine, other = (
        torch.rand(4, c, dtype=reference.math_dtype(dtype), device="cuda") + torch.tensor([[0.5], [0.5], [0.5], [-0.5]],
        device="cuda") for _ in range(2)
    )  # fmt: skip
    rounding = 2 * ROUNDING[dtype] if dtype != torch.float64 else 1e-13
    for extra, its, relu in product((None, residual), (None, other), (True, False)):
        a, b = (m.bn_act(x, affine, extra, relu, its) for m in (cuda, reference))
        assert distance(a, b) <= rounding
    for (relu, mask), part in product(((True, out), (True, None), (False, None)), (None, addend)):
        sums, kept = cuda.backward_sums(grad, part, x, affine, mask, relu, True)
        wanted, masked = reference.backward_sums(grad, part, x, affine, mask, relu, True)
        assert kept is not None
        assert masked is not None
        assert distance(kept, masked) <= rounding
        assert distance(sums, wanted) <= (1e-12 if dtype == torch.float64 else 1e-5)
        for count in (float(x.numel() // c), float("inf")):
            pair = (m.backward_input(grad, x, affine, wanted, count, relu and mask is None) for m in (cuda, reference))
            assert distance(*pair) <= rounding + 1e-7


def reductions(x: Tensor, affine: Tensor) -> list[Tensor]:
    cuda = bn_act_primitives("cuda", x)
    return [cuda.statistics(x), cuda.backward_sums(x, None, x, affine, None, True, False)[0]]


def equal(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_repeats_bit_for_bit_on_streams_that_overlap() -> None:
    x = make((8, 36, 96, 72), torch.float32, torch.channels_last).cuda()
    affine = torch.rand(4, 36, device="cuda")
    wanted = reductions(x, affine)
    streams = [torch.cuda.Stream() for _ in range(3)]
    found = []
    torch.cuda.synchronize()
    for stream in 20 * streams:
        with torch.cuda.stream(stream):
            found.append(reductions(x, affine))
    torch.cuda.synchronize()
    assert all(equal(f, wanted) for f in found)


def test_graphs_replay_beside_each_other() -> None:
    x = make((8, 36, 96, 72), torch.float32, torch.channels_last).cuda()
    affine = torch.rand(4, 36, device="cuda")
    wanted = reductions(x, affine)
    graphs, results = [], []
    for _ in range(3):
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            results.append(reductions(x, affine) + reductions(x, affine))
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(10):
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        again = reductions(x, affine)
        torch.cuda.synchronize()
        assert equal(again, wanted)
        assert all(equal(found, wanted + wanted) for found in results)
