"""The CUDA kernels of ``fuse_sum``, run on a host under ASan and UBSan, against the float64 oracle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_host import ABSENT, CODES, Block, build, channel_values, numbers, run
from operator_cases import ROUNDING, distance
from torch import Tensor

from hrnet_fast.ops.fuse_sum import RESAMPLE
from hrnet_fast.reference.fuse_sum import fuse_sum as reference

MODES = [("nearest", False), ("bilinear", False), ("bilinear", True)]
pytestmark = [pytest.mark.sanitizer, pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("fuse_sum_host", tmp_path_factory)


@dataclass
class Given:
    """One forward call, and the gradient of its result."""

    xs: list[Tensor]
    scales: list[Tensor | None]
    shifts: list[Tensor | None]
    size: tuple[int, int]
    mode: tuple[str, bool] = ("bilinear", False)
    relu: bool = True
    last: bool = True
    sliced: int = 0  # channels on either side of every map within a wider one
    sums: bool = True  # whether gradients of affines are wanted
    grad: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n, c = self.xs[0].shape[:2]
        self.grad = torch.randn(n, c, *self.size).to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.xs[0].dtype

    @property
    def wide(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def block(self, shape: Sequence[int]) -> Block:
        n, c, h, w = shape
        return Block((n, c, h, w), self.dtype, self.last, self.sliced, self.sliced)

    def common(self, forward: bool, size: Sequence[int]) -> bytes:
        n, c = self.xs[0].shape[:2]
        return numbers(forward, CODES[self.dtype], RESAMPLE[self.mode], self.relu, self.last, n, c, *size)

    def expected(self, dtype: torch.dtype, alive: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The result, and the gradients of all tensors where the activation's decisions are given."""
        lists = [[None if t is None else t.detach().to(dtype).requires_grad_() for t in ts]
                 for ts in (self.xs, self.scales, self.shifts)]  # fmt: skip
        out = reference(lists[0], lists[1], lists[2], self.size, *self.mode, False)  # type: ignore[arg-type]
        leaves = [t for ts in lists for t in ts]
        found = iter(
            torch.autograd.grad(out, [t for t in leaves if t is not None], torch.where(alive, self.grad, 0).to(dtype))
        )
        return (out.relu() if self.relu else out).detach(), [None if t is None else next(found) for t in leaves]


def forward(program: Path, folder: Path, givens: Sequence[Given]) -> list[tuple[int, Tensor]]:
    """Pack width and result of each."""
    cases, blocks = [], []
    for g in givens:
        case = g.common(True, g.size) + numbers(len(g.xs))
        for x, scale, shift in zip(g.xs, g.scales, g.shifts, strict=True):
            case += numbers(*x.shape[-2:]) + g.block(x.shape).fill(x).write()
            case += channel_values(scale) + channel_values(shift)
        blocks.append(g.block((*g.xs[0].shape[:2], *g.size)))
        cases.append(case + blocks[-1].write())
    results = run(program, folder, cases)
    return [(results.number(), results.block(b)) for b in blocks]


@dataclass
class Back:
    width: int
    split: int
    x: Tensor
    scale: Tensor | None
    shift: Tensor | None


def backward(program: Path, folder: Path, givens: Sequence[Given], outs: Sequence[Tensor]) -> list[list[Back]]:
    """Gradients of every term of each."""
    cases, blocks = [], []
    for g, out in zip(givens, outs, strict=True):
        for x, scale in zip(g.xs, g.scales, strict=True):
            case = g.common(False, x.shape[-2:]) + numbers(*g.size)
            case += g.block(g.grad.shape).fill(g.grad).write()
            case += g.block(out.shape).fill(out).write() if g.relu else ABSENT
            sums = g.sums and scale is not None
            case += (g.block(x.shape).fill(x).write() if sums else ABSENT) + channel_values(scale) + numbers(sums)
            blocks.append(g.block(x.shape))
            cases.append(case + blocks[-1].write())
    results, at, found = run(program, folder, cases), iter(blocks), []
    for g in givens:
        terms = []
        for scale in g.scales:
            back = Back(results.number(), results.number(), results.block(next(at)), None, None)
            if g.sums and scale is not None:
                c = scale.numel()
                totals = torch.from_numpy(np.frombuffer(results.take(16 * c), dtype=np.float64).copy())
                back.shift, back.scale = totals[:c].to(g.wide), totals[c:].to(g.wide)
            terms.append(back)
        found.append(terms)
    return found


def given(
    shapes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    channels: int = 8,
    batch: int = 2,
    affine: int = 1,
    **options: Any,
) -> Given:
    """Terms of these sizes, the first one's being the result's. Every `affine`-th has an affine; 0: none."""
    xs = [torch.randn(batch, channels, *s).to(dtype) for s in shapes]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    has = [affine > 0 and k % affine == 0 for k in range(len(xs))]
    scales = [torch.rand(channels, dtype=wide) + 0.5 if a else None for a in has]
    shifts = [torch.randn(channels, dtype=wide) if a else None for a in has]
    return Given(xs, scales, shifts, shapes[0], **options)


def budget(found: Tensor, exact: Tensor, own: Tensor, dtype: torch.dtype) -> None:
    floor = (32 if dtype == torch.float64 else 2) * ROUNDING[dtype]
    assert distance(found, exact) <= 2 * distance(own, exact) + floor


def judge(program: Path, folder: Path, givens: Sequence[Given]) -> tuple[list[int], list[Back]]:
    """Hold results and gradients of all to the budget; return the pack widths and the backward's."""
    done = forward(program, folder, givens)
    outs = [out for _, out in done]
    backs = backward(program, folder, givens, outs)
    for g, out, terms in zip(givens, outs, backs, strict=True):
        # The oracle takes the activation's decisions from the result under test, as in test_fuse_sum.py.
        alive = out > 0 if g.relu else torch.ones_like(out, dtype=torch.bool)
        exact, exact_grads = g.expected(torch.float64, alive)
        own, own_grads = g.expected(g.dtype, alive)
        budget(out, exact, own, g.dtype)
        found = [t.x for t in terms] + [t.scale for t in terms] + [t.shift for t in terms]
        for f, e, o in zip(found, exact_grads, own_grads, strict=True):
            if f is not None:
                assert e is not None
                assert o is not None
                budget(f, e, o, g.dtype)
    return [width for width, _ in done], [t for terms in backs for t in terms]


def fusion(size: tuple[int, int]) -> list[tuple[int, int]]:
    """An identity term, coarser ones as a fusion has them, and a finer one of an odd ratio."""
    coarser = [(max(1, -(-size[0] // f)), max(1, -(-size[1] // f))) for f in (2, 4, 8)]
    return [size, *coarser, (size[0] + 3, 2 * size[1])]


def layouts() -> Iterator[dict[str, Any]]:
    for last in (True, False):
        for mode in MODES:
            yield {"last": last, "mode": mode}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(CODES), ids=str)
def test_parity(program: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Every instance: each pack width, mode and layout, with and without affines."""
    givens = []
    for options in layouts():
        for channels, width in ((8, 8), (6, 6), (3, 5)):
            givens.append(given(fusion((7, width)), dtype, channels, affine=2, **options))
            givens.append(given([(1, width), (1, 1), (5, 1)], dtype, channels, batch=1, **options))
    widths, backs = judge(program, tmp_path, givens)
    full = 16 // dtype.itemsize
    assert set(widths) == {full, min(full, 4), 2, 1}  # no more than four pixels of a row
    assert {b.width for b in backs} == {full, 2, 1}
    assert {b.split for b in backs} > {1}


@pytest.mark.slow
@pytest.mark.parametrize("sliced", [8, 1])
def test_channel_slices_of_wider_maps(program: Path, tmp_path: Path, sliced: int) -> None:
    """Where a map begins and its steps are arguments of every instance; `test_parity` visits the instances."""
    givens = [
        given(fusion((6, 8)), dtype, 16, sliced=sliced, **options)
        for options in ({"last": True}, {"last": False, "mode": ("nearest", False)})
        for dtype in (torch.float32, torch.bfloat16)
    ]
    widths, _ = judge(program, tmp_path, givens)
    assert max(widths) == (8 if sliced == 8 else 4)
    if sliced == 1:  # neither address nor step are multiples of a pack's
        assert {w for w, g in zip(widths, givens, strict=True) if g.last} == {1}


@pytest.mark.slow
def test_large_odd_size(program: Path, tmp_path: Path) -> None:
    """Several blocks of an image, and sums over many pixels."""
    givens = [given(fusion((65, 97)), torch.float32, 4, 1, last=last) for last in (True, False)]
    judge(program, tmp_path, givens)


@pytest.mark.slow
def test_many_channels(program: Path, tmp_path: Path) -> None:
    """More packs of channels than a block has threads for, and no multiple of them."""
    givens = [given([(2, 2), (1, 2)], torch.float32, channels, 1, last=last)
              for channels in (140, 257) for last in (True, False)]  # fmt: skip
    judge(program, tmp_path, givens)


@pytest.mark.parametrize("count", range(1, 9))
def test_every_number_of_terms(program: Path, tmp_path: Path, count: int) -> None:
    shapes = [(4, 8), (2, 4), (4, 8), (1, 2), (4, 8), (3, 3), (8, 16), (4, 8)][:count]
    judge(program, tmp_path, [given(shapes, torch.bfloat16, affine=0, relu=relu) for relu in (True, False)])


def test_gradients_without_sums(program: Path, tmp_path: Path) -> None:
    judge(program, tmp_path, [given(fusion((9, 6)), torch.float32, last=last, sums=False) for last in (True, False)])


@pytest.mark.parametrize("last", [True, False])
def test_nan_and_infinity_go_where_the_reference_sends_them(program: Path, tmp_path: Path, last: bool) -> None:
    g = given([(8, 8), (4, 4)], torch.float32, affine=0, last=last)
    g.xs[1][0, 0, 1, 1] = torch.nan
    g.xs[0][0, 1, 2, 2] = torch.inf
    g.xs[0][0, 2, 3, 3] = -torch.inf
    g.grad[0, 3, 4, 4] = torch.inf
    ((_, out),) = forward(program, tmp_path, [g])
    xs = [x.clone().requires_grad_() for x in g.xs]
    expected = reference(xs, [None] * 2, [None] * 2, g.size, "bilinear", False, True)
    assert torch.allclose(out, expected, equal_nan=True, rtol=1e-6, atol=1e-6)
    assert out.isnan().any()
    (terms,) = backward(program, tmp_path, [g], [expected.detach()])
    wanted = torch.autograd.grad(expected, xs, g.grad)
    for term, w in zip(terms, wanted, strict=True):
        # The reference scatters with weights of zero as well; where its own gradient is NaN, ours may be finite.
        assert not term.x.isnan().any()
        clean = ~w.isnan()
        assert torch.allclose(term.x[clean], w[clean], rtol=1e-5, atol=1e-5)
