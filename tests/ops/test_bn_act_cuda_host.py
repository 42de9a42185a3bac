"""The CUDA kernels of ``bn_act``, run on a host under ASan and UBSan, against the float64 oracle."""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_host import ABSENT, CODES, Block, Results, build, channel_values, numbers, raw, run
from torch import Tensor

from hrnet_fast.norm_affine import Norm, math_dtype
from hrnet_fast.reference import bn_act as reference

pytestmark = [pytest.mark.sanitizer, pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")]
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
DTYPES = list(CODES)
STATISTICS, RUNNING_AFFINE, APPLY, BACKWARD_SUMS, BACKWARD_INPUT = range(5)
KINDS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
ORDERS = (0, 2)  # of a launch's blocks: as numbered, shuffled
# Channels of narrow networks, which no pack of a half type divides, odd sizes, one pixel, planes of a few packs.
SHAPES = [(2, 18, 17, 25), (3, 6, 1, 1), (2, 36, 8, 6), (1, 5, 13, 9), (4, 3, 20, 16), (2, 144, 4, 3)]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("bn_act_host", tmp_path_factory)


def head(operation: int, dtype: torch.dtype, order: int = 0) -> bytes:
    return numbers(operation, CODES[dtype], order)


def launches(cases: Sequence[bytes], operation: int, dtype: torch.dtype, orders: Sequence[int] = (0,)) -> list[bytes]:
    """Maps in launches of up to eight, of any layouts and widths, each launch in every order of blocks."""
    parts = [cases[k : k + 8] for k in range(0, len(cases), 8)]
    return [head(operation, dtype, order) + numbers(len(part)) + b"".join(part) for part in parts for order in orders]


def shape_of(x: Tensor, last: bool) -> bytes:
    n, c, h, w = x.shape
    return numbers(n, c, h * w, last)


def map_of(x: Tensor | None, last: bool, around: int = 0) -> bytes:
    """A map, or some channels of a wider one."""
    if x is None:
        return ABSENT
    n, c, h, w = x.shape
    return Block((n, c, h, w), x.dtype, last, around, around).fill(x).write()


def empty_of(x: Tensor, last: bool, around: int = 0) -> Block:
    n, c, h, w = x.shape
    return Block((n, c, h, w), x.dtype, last, around, around)


def table(results: Results, rows: int, channels: int, dtype: torch.dtype) -> Tensor:
    data = np.frombuffer(results.take(rows * channels * dtype.itemsize), dtype=np.uint8).copy()
    return torch.from_numpy(data).view(dtype).view(rows, channels)


def parameter(t: Tensor | None) -> bytes:
    """A vector as it lies, with whatever stands between its elements."""
    if t is None:
        return numbers(0, 0, 1)
    memory = t.as_strided(((t.numel() - 1) * t.stride(0) + 1,), (1,))
    return numbers(memory.nbytes, KINDS[t.dtype], t.stride(0)) + raw(memory)


def norm_of(norm: Norm, begin: int) -> bytes:
    end = begin + norm.channels
    return numbers(begin, end) + struct.pack("<2d", norm.momentum, norm.eps) + b"".join(map(parameter, norm[1:5]))


def values(shape: Sequence[int], dtype: torch.dtype, ratio: float = 0.0) -> Tensor:
    """Channels of various deviations, whose means are about `ratio` times those."""
    spread = torch.rand(shape[1]).view(-1, 1, 1) + 0.5
    return ((torch.randn(*shape) + ratio * torch.randn(shape[1]).view(-1, 1, 1)) * spread).to(dtype)


def make_norm(channels: int, dtype: torch.dtype = torch.float32, absent: str = "", stride: int = 1) -> Norm:
    """`absent` names parameters by their first letters: w, b, and r for both running statistics."""
    tensors = [(torch.rand(channels, stride) + 0.5).to(dtype)[:, 0] for _ in range(4)]
    weight, bias, mean, variance = (None if k in absent else t for k, t in zip("wbrr", tensors, strict=True))
    return Norm(channels, weight, bias, mean, variance, 0.3, 1e-3)


def copied(norm: Norm) -> Norm:
    return Norm(norm.channels, *(None if t is None else t.clone() for t in norm[1:5]), norm.momentum, norm.eps)


@dataclass
class Batch:
    """Maps of one launch, each with its normalisations: none for mean and variance alone."""

    xs: list[Tensor]
    norms: list[list[Norm]]
    last: list[bool]
    around: int = 0
    tables: list[Tensor] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)
    running: list[Tensor | None] = field(default_factory=list)

    def write(self, order: int) -> bytes:
        case = head(STATISTICS, self.xs[0].dtype, order) + numbers(len(self.xs))
        for x, norms, last in zip(self.xs, self.norms, self.last, strict=True):
            case += shape_of(x, last) + map_of(x, last, self.around) + numbers(len(norms))
            begin = 0
            for norm in norms:
                case += norm_of(norm, begin)
                begin += norm.channels
        return case

    def read(self, results: Results) -> Batch:
        done = Batch(self.xs, self.norms, self.last)
        for x, norms in zip(self.xs, self.norms, strict=True):
            done.widths.append(results.number())
            done.tiles.append(results.number())
            done.tables.append(table(results, 4 if norms else 2, x.shape[1], math_dtype(x.dtype)))
        for norm in (n for norms in self.norms for n in norms):
            for t in (norm.running_mean, norm.running_var):
                if t is None:
                    done.running.append(None)
                    continue
                size = (t.numel() - 1) * t.stride(0) + 1
                done.running.append(table(results, 1, size, t.dtype)[0, :: t.stride(0)])
        return done


def statistics(program: Path, folder: Path, batches: Sequence[Batch], orders: Sequence[int] = ORDERS) -> list[Batch]:
    """Results, which are the same for every order of the blocks."""
    results = run(program, folder, [b.write(order) for b in batches for order in orders])
    found = []
    for batch in batches:
        runs = [batch.read(results) for _ in orders]
        for other in runs[1:]:
            for a, b in zip(runs[0].tables + runs[0].running, other.tables + other.running, strict=True):
                assert (a is None) == (b is None)
                if a is not None and b is not None:
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        found.append(runs[0])
    return found


def roundings(found: Tensor, exact: Tensor, scale: Tensor | None = None) -> float:
    """The largest error in roundings of the dtype, of `exact` or of `scale`."""
    unit = (exact if scale is None else scale).double().abs().clamp_min(1e-300) * ROUNDING[found.dtype]
    return ((found.double() - exact.double()).abs() / unit).max().item()


def judge_statistics(batches: Sequence[Batch]) -> None:
    for done in batches:
        running = iter(done.running)
        for x, norms, found in zip(done.xs, done.norms, done.tables, strict=True):
            wide = x.double()
            mean, variance = wide.mean((0, 2, 3)), wide.var((0, 2, 3), correction=0)
            # A mean's rounding is of its own size or, where values cancel, of a deviation's.
            size = torch.maximum(mean.abs(), variance.sqrt())
            allowed = 64.0 if x.dtype == torch.float64 else 3.5
            if not norms:
                assert roundings(found[0], mean, size) <= allowed
                assert roundings(found[1], variance) <= allowed
                continue
            theirs = [copied(norm) for norm in norms]
            exact = reference.affine(mean, variance, theirs, torch.float64)
            reference.update_running(theirs, mean, variance, x.numel() // x.shape[1])
            assert roundings(found[0], exact[0], size) <= allowed
            assert roundings(found[1], exact[1]) <= allowed
            assert roundings(found[2], exact[2]) <= 2 * allowed
            scale = torch.maximum((size * exact[2]).abs(), exact[3].abs())
            assert roundings(found[3], exact[3], scale) <= 4 * allowed
            for norm in theirs:
                for t in (norm.running_mean, norm.running_var):
                    moved = next(running)
                    assert (moved is None) == (t is None)
                    if moved is not None and t is not None:
                        torch.testing.assert_close(moved, t, rtol=4 * ROUNDING[t.dtype], atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(program: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Every pack width and layout; several maps in one launch; stacked normalisations; all kinds of parameters."""
    batches = []
    for last, ratio in ((True, 0.0), (False, 0.0), (True, 10.0), (False, 10.0)):
        xs = [values(shape, dtype, ratio) for shape in SHAPES]
        norms = [
            [make_norm(11), make_norm(7, absent="wb")],
            [make_norm(6, torch.float64, "r")],
            [make_norm(1, torch.float16), make_norm(35, torch.bfloat16)],
            [make_norm(5, stride=3)],
            [],
            [make_norm(144, absent="b")],
        ]
        batches.append(Batch(xs, norms, [last] * len(xs)))
    batches.append(Batch(batches[0].xs[:2], batches[0].norms[:2], [True, False]))
    done = statistics(program, tmp_path, batches)
    judge_statistics(done)
    full = 16 // dtype.itemsize
    assert {w for b in done for w in b.widths} == {full, 2, 1}
    assert max(t for b in done for t in b.tiles) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "dtype", "full"), [
    (18, torch.float32, True), (18, torch.bfloat16, True), (36, torch.float16, True), (30, torch.bfloat16, True),
    (44, torch.bfloat16, True), (270, torch.bfloat16, True), (270, torch.float32, True), (1030, torch.bfloat16, False),
])  # fmt: skip
def test_packs_across_pixels(program: Path, tmp_path: Path, channels: int, dtype: torch.dtype, full: bool) -> None:
    """Channels that no pack divides are read 16 bytes at a time where pixels together make whole packs."""
    (done,) = statistics(program, tmp_path, [Batch([values((2, channels, 4, 6), dtype)], [[]], [True])])
    judge_statistics([done])
    assert done.widths == [16 // dtype.itemsize if full else 2]


@pytest.mark.slow
def test_many_channels_and_long_runs(program: Path, tmp_path: Path) -> None:
    """More groups of channels than counters, and more values than the usual number of blocks takes."""
    batches = [Batch([values(shape, torch.float32)], [[]], [True]) for shape in ((2, 16501, 1, 1), (1, 4097, 23, 25))]
    batches.append(Batch([values((3, 1100, 2, 2), torch.float32)], [[make_norm(1000), make_norm(100)]], [False]))
    done = statistics(program, tmp_path, batches, orders=[2])
    judge_statistics(done)
    assert [b.tiles for b in done] == [[1], [2], [1]]


@pytest.mark.slow
@pytest.mark.parametrize("last", [True, False])
def test_a_mean_of_a_thousand_deviations(program: Path, tmp_path: Path, last: bool) -> None:
    """And one first value that lies far out."""
    far = values((2, 18, 24, 20), torch.float32)
    far[0, :, 0, 0] = 300.0
    batches = [Batch([values((2, 18, 24, 20), dtype, 1e3)], [[make_norm(18)]], [last])
               for dtype in (torch.float32, torch.bfloat16)]  # fmt: skip
    judge_statistics(statistics(program, tmp_path, [*batches, Batch([far], [[]], [last])]))


@pytest.mark.parametrize("last", [True, False])
def test_channel_slices(program: Path, tmp_path: Path, last: bool) -> None:
    batches = [
        Batch([values((2, 16, 6, 4), dtype)], [[make_norm(16)]], [last], around)
        for around, dtype in product((8, 3), (torch.float32, torch.bfloat16))
    ]
    done = statistics(program, tmp_path, batches)
    judge_statistics(done)
    assert done[0].widths == [4]
    assert (done[2].widths == [1]) == last  # neither address nor step are multiples of a pack's


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_running_affine(program: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    norms = [make_norm(300), make_norm(2, torch.bfloat16, "wb"), make_norm(5, torch.float16, stride=2)]
    case = head(RUNNING_AFFINE, dtype) + numbers(len(norms))
    for norm, begin, owner in zip(norms, (0, 300, 302), ((0, 302), (0, 302), (302, 5)), strict=True):
        case += norm_of(norm, begin) + numbers(*owner)  # a table of two stacked normalisations, and one of the third's
    results = run(program, tmp_path, [case])
    found = torch.cat([table(results, 4, 302, dtype), table(results, 4, 5, dtype)], 1)
    exact = reference.running_affine([norm._replace(running_mean=norm.running_mean.double()) for norm in norms],  # type: ignore[union-attr]
                                     torch.float64)  # fmt: skip
    assert roundings(found[:3], exact[:3]) <= 4
    assert roundings(found[3], exact[3], exact[3].abs() + (exact[0] * exact[2]).abs()) <= 4


def affine_of(channels: int, dtype: torch.dtype) -> Tensor:
    return torch.stack([torch.randn(channels), torch.rand(channels) + 0.5, torch.randn(channels),
                        torch.randn(channels)]).to(math_dtype(dtype))  # fmt: skip


def distance(a: Tensor, exact: Tensor) -> float:
    norm = exact.double().norm().item()
    return (a.double() - exact.double()).norm().item() / (norm or 1.0)


def close(found: Tensor, exact: Tensor, own: Tensor) -> None:
    """Within twice the reference's own error and one rounding."""
    floor = (32 if found.dtype == torch.float64 else 1) * ROUNDING[found.dtype]
    assert distance(found, exact) <= 2 * distance(own, exact) + floor


# Shape, layout and the channels on either side of each map within a wider one.
SMALL = [((2, 18, 5, 4), last, 0) for last in (True, False)]
LAYOUTS = [(shape, last, 0) for shape in SHAPES for last in (True, False)]
LAYOUTS += [((2, 16, 5, 4), last, around) for last in (True, False) for around in (8, 3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_apply(program: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    cases, wanted, blocks = [], [], []
    kinds = list(product(("", "plain", "affine"), (True, False)))
    given = [(layout, kind) for layout in SMALL for kind in kinds]
    given += [(layout, kinds[k % 6]) for k, layout in enumerate(LAYOUTS)]
    for (shape, last, around), (residual, relu) in given:
        x, other = values(shape, dtype), values(shape, dtype) if residual else None
        affine = affine_of(shape[1], dtype)
        second = affine_of(shape[1], dtype) if residual == "affine" else None
        blocks.append(empty_of(x, last, around))
        case = shape_of(x, last) + numbers(relu) + map_of(x, last, around)
        case += map_of(other, last, around) + channel_values(affine) + channel_values(second)
        cases.append(case + blocks[-1].write())
        wide = [None if t is None else t.double() for t in (x, affine, other, second)]
        exact = reference.bn_act(wide[0], wide[1], wide[2], relu, wide[3])  # type: ignore[arg-type]
        wanted.append((exact, reference.bn_act(x, affine, other, relu, second)))
    results, widths = run(program, tmp_path, launches(cases, APPLY, dtype)), set()
    for block, (exact, own) in zip(blocks, wanted, strict=True):
        widths.add(results.number())
        close(results.block(block), exact, own)
    assert widths == {16 // dtype.itemsize, 2, 1}


@dataclass
class Sums:
    """One call of backward_sums; `mask` is "", "x" (recomputed) or "out"."""

    shape: tuple[int, ...]
    last: bool
    around: int
    dtype: torch.dtype
    mask: str
    addend: bool
    keep: bool

    def __post_init__(self) -> None:
        self.grad, self.x, self.out = (values(self.shape, self.dtype) for _ in range(3))
        self.more = values(self.shape, self.dtype) if self.addend else None
        self.affine = affine_of(self.shape[1], self.dtype)
        self.kept = empty_of(self.x, self.last, self.around) if self.keep else None

    def write(self) -> bytes:
        case = shape_of(self.x, self.last) + numbers(self.mask != "")
        given = (self.grad, self.more, self.x, self.out if self.mask == "out" else None)
        case += b"".join(map_of(t, self.last, self.around) for t in given) + channel_values(self.affine)
        return case + (ABSENT if self.kept is None else self.kept.write())

    def judge(self, results: Results) -> tuple[int, Tensor]:
        width = results.number()
        sums = table(results, 2, self.shape[1], math_dtype(self.dtype))
        wide = [t if t is None else t.double() for t in (self.grad, self.more, self.x, self.affine, self.out)]
        grad, more, x, affine, out = wide
        assert grad is not None
        assert x is not None
        assert affine is not None
        # The mask is the kernel's own decision, in the maths' dtype and one rounding.
        if self.mask == "x":
            out = (x * affine[2].view(1, -1, 1, 1) + affine[3].view(1, -1, 1, 1)).to(sums.dtype)
        g = grad if more is None else grad + more
        g = g if self.mask == "" else torch.where(out <= 0, 0.0, g)  # type: ignore[operator]
        if self.kept is not None:
            assert torch.equal(results.block(self.kept), g.to(self.dtype))
            g = g.to(self.dtype).double()
        centred = (x - affine[0].view(1, -1, 1, 1)) * affine[1].view(1, -1, 1, 1)
        for found, terms in zip(sums, (g, g * centred), strict=True):
            # A few roundings of the sum, or where its terms cancel of what they add up to at random.
            exact = terms.sum((0, 2, 3))
            size = torch.maximum(exact.abs(), 2 * terms.square().sum((0, 2, 3)).sqrt()).clamp_min(1e-30)
            assert roundings(found, exact, size) <= (64.0 if self.dtype == torch.float64 else 4.0)
        return width, sums


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_sums(program: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    kinds = list(product(("", "x", "out"), (True, False), (True, False)))
    given = [Sums(*layout, dtype, *kind) for layout in SMALL for kind in kinds]
    given += [Sums(*layout, dtype, *kinds[5 * k % 12]) for k, layout in enumerate(LAYOUTS)]
    results = run(program, tmp_path, launches([s.write() for s in given], BACKWARD_SUMS, dtype, (0, 2)))
    widths = set()
    for k in range(0, len(given), 8):
        first, second = ([s.judge(results) for s in given[k : k + 8]] for _ in range(2))
        for (width, sums), (_, again) in zip(first, second, strict=True):
            assert torch.equal(sums, again)
            widths.add(width)
    assert widths == {16 // dtype.itemsize, 2, 1}


@pytest.mark.slow
def test_sums_of_many_channels(program: Path, tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16):
        given = [Sums((2, c, 3, 2), last, 0, dtype, "x", False, True) for c in (270, 1100) for last in (True, False)]
        results = run(program, tmp_path, launches([s.write() for s in given], BACKWARD_SUMS, dtype, (1,)))
        for s in given:
            s.judge(results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_input(program: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """Statistics of a batch, of a larger one of several processes, and constants."""
    cases, wanted, blocks = [], [], []
    kinds = list(product((True, False), (1, 3, 0)))
    given = [(layout, kind) for layout in SMALL for kind in kinds]
    given += [(layout, kinds[k % 6]) for k, layout in enumerate(LAYOUTS)]
    for (shape, last, around), (relu, batch) in given:
        grad, x, affine = values(shape, dtype), values(shape, dtype), affine_of(shape[1], dtype)
        count = float(batch * x.numel() // shape[1]) if batch else math.inf
        sums = torch.randn(2, shape[1]).to(affine.dtype) * 10
        blocks.append(empty_of(x, last, around))
        case = shape_of(x, last) + numbers(relu) + struct.pack("<d", count)
        case += map_of(grad, last, around) + map_of(x, last, around) + channel_values(affine)
        cases.append(case + channel_values(sums if batch else None) + blocks[-1].write())
        mask = x.double() * affine[2].double().view(1, -1, 1, 1) + affine[3].double().view(1, -1, 1, 1)
        masked = grad.masked_fill(mask.to(affine.dtype) <= 0, 0) if relu else grad
        exact = reference.backward_input(masked.double(), x.double(), affine.double(), sums.double(), count, False)
        wanted.append((exact, reference.backward_input(masked, x, affine, sums, count, False)))
    results, widths = run(program, tmp_path, launches(cases, BACKWARD_INPUT, dtype)), set()
    for block, (exact, own) in zip(blocks, wanted, strict=True):
        widths.add(results.number())
        close(results.block(block), exact, own)
    assert widths == {16 // dtype.itemsize, 2, 1}


@pytest.mark.parametrize("last", [True, False])
def test_nan_and_infinity(program: Path, tmp_path: Path, last: bool) -> None:
    """They stay in their channel, pass the mask of an activation, and are not lost in sums."""
    x = values((2, 8, 6, 6), torch.float32)
    x[0, 0, 1, 1] = torch.nan
    x[0, 1, 0, 0] = torch.inf  # the value that means are relative to
    x[0, 2, 3, 3] = -torch.inf
    (done,) = statistics(program, tmp_path, [Batch([x], [[make_norm(8)]], [last])])
    assert torch.equal(done.tables[0].isfinite().all(0), torch.arange(8) >= 3)
    for running in done.running:
        assert running is not None
        assert torch.equal(running.isfinite(), torch.arange(8) >= 3)
    sums = Sums((2, 8, 6, 6), last, 0, torch.float32, "out", False, False)
    sums.grad[0, 0, 2, 2], sums.out[0, 0, 2, 2] = torch.inf, torch.nan
    sums.grad[1, 1, 3, 3], sums.out[1, 1, 3, 3] = torch.inf, 0.0
    results = run(program, tmp_path, launches([sums.write()], BACKWARD_SUMS, torch.float32))
    results.number()
    found = table(results, 2, 8, torch.float32)
    assert found[0, 0] == torch.inf
    assert found[:, 1:].isfinite().all()
    block = empty_of(x, last)
    affine = affine_of(8, torch.float32)
    case = shape_of(x, last) + numbers(1) + map_of(x, last) + ABSENT
    case += channel_values(affine) + channel_values(None) + block.write()
    results = run(program, tmp_path, launches([case], APPLY, torch.float32))
    results.number()
    assert torch.allclose(results.block(block), reference.bn_act(x, affine, None, True), equal_nan=True, atol=1e-5)
