"""``fuse_sum``: every implementation against the float64 oracle, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from operator_cases import (
    CPU,
    CUDA,
    EVERY,
    FORMS,
    LAYOUTS,
    ROUNDING,
    TRITON,
    compiler_for,
    device_of,
    distance,
    interpreted,
)
from torch import Tensor

from hrnet_fast import ImplementationError, InputError
from hrnet_fast.ops import fuse_sum

OPS = torch.ops.hrnet_fast
DOUBLE_IMPLS = ["reference", CPU, CUDA]  # Triton's kernels compute in float32
IMPLS = [*DOUBLE_IMPLS, TRITON]
MODES = [("nearest", False), ("bilinear", False), ("bilinear", True)]
SIZES = [(16, 24), (17, 25), (65, 97), (1, 1), (5, 1)]
CHANNELS = 6


@dataclass
class Case:
    xs: list[Tensor]
    scales: list[Tensor | None]
    shifts: list[Tensor | None]
    size: tuple[int, int]

    def to(self, dtype: torch.dtype) -> Case:
        """The same values, exactly, in a wider dtype, each a leaf."""
        wide = [[None if t is None else t.detach().to(dtype).requires_grad_() for t in ts] for ts in self._parts()]
        return Case(wide[0], wide[1], wide[2], self.size)  # type: ignore[arg-type]

    def _parts(self) -> list[list[Tensor | None]]:
        return [list(self.xs), self.scales, self.shifts]

    def leaves(self) -> list[Tensor]:
        return [t for part in self._parts() for t in part if t is not None]


def make_case(
    size: tuple[int, int],
    dtype: torch.dtype,
    *,
    channels_last: bool = False,
    batch: int = 2,
    affine: bool = True,
    channels: int = CHANNELS,
    device: str = "cpu",
) -> Case:
    """An identity term, coarser ones as a fusion has them, and a finer one of an odd ratio."""
    shapes = [size, *(tuple(max(1, -(-s // f)) for s in size) for f in (2, 4, 8)), (size[0] + 3, 2 * size[1])]
    xs = [torch.randn(batch, channels, *s).to(device, dtype) for s in shapes]
    if channels_last:
        xs = [x.contiguous(memory_format=torch.channels_last) for x in xs]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scales: list[Tensor | None] = [None, *((torch.rand(channels, dtype=wide) + 0.5).to(device) for _ in shapes[1:])]
    shifts: list[Tensor | None] = [None, *(torch.randn(channels, dtype=wide).to(device) for _ in shapes[1:])]
    if not affine:
        scales = shifts = [None] * len(xs)
    case = Case(xs, scales, shifts, size)
    for leaf in case.leaves():
        leaf.requires_grad_()
    return case


def run(case: Case, impl: str, mode: str, align: bool, activation: str | None = "relu") -> Tensor:
    return fuse_sum(
        case.xs, case.scales, case.shifts, size=case.size, mode=mode, align_corners=align, activation=activation,
        impl=impl,
    )  # fmt: skip


def within_budget(case: Case, impl: str, mode: str, align: bool) -> None:
    """Error against the oracle at most twice the reference's own in the same dtype, plus one rounding."""
    dtype = case.xs[0].dtype
    exact_case, reference_case = case.to(torch.float64), case.to(torch.float64).to(dtype)
    out = run(case, impl, mode, align)
    # The oracle takes the activation's decision from the result under test: at a value that rounding moved across
    # zero, neither side of the gradient is wrong.
    alive = (out.detach() > 0).double()
    grad = torch.randn_like(out)
    exact = run(exact_case, "reference", mode, align, activation=None)
    reference = run(reference_case, "reference", mode, align)

    assert out.shape == exact.shape
    assert out.dtype == dtype
    # In float64 the oracle rounds like what it judges: a few roundings of difference are neither's fault.
    floor = (32 if dtype == torch.float64 else 2) * ROUNDING[dtype]
    assert distance(out, exact.relu()) <= 2 * distance(reference, exact.relu()) + floor
    given = torch.autograd.grad(out, case.leaves(), grad)
    wanted = torch.autograd.grad(exact, exact_case.leaves(), grad.double() * alive)
    alive_reference = run(reference_case, "reference", mode, align, activation=None)
    allowed = torch.autograd.grad(alive_reference, reference_case.leaves(), grad * alive.to(dtype))
    for g, w, a, leaf in zip(given, wanted, allowed, case.leaves(), strict=True):
        assert g.dtype == leaf.dtype
        assert g.shape == leaf.shape
        assert distance(g, w) <= 2 * distance(a, w) + floor


@pytest.mark.parametrize(("dtype", "channels_last"), LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("mode", "align"), MODES)
@pytest.mark.parametrize("impl", [CPU, CUDA, TRITON])
def test_parity(
    impl: str, mode: str, align: bool, size: tuple[int, int], dtype: torch.dtype, channels_last: bool
) -> None:
    if impl == "triton" and dtype == torch.float64:
        pytest.skip("its kernels compute in float32")
    within_budget(make_case(size, dtype, channels_last=channels_last, device=device_of(impl)), impl, mode, align)


@pytest.mark.parametrize("channels", [32, 18, 7])
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("impl", [CUDA])
def test_every_width_of_access(impl: str, channels_last: bool, dtype: torch.dtype, channels: int) -> None:
    """Packs of 16 bytes, pairs and single values: along channels, or along rows as wide."""
    size = (24, channels)
    case = make_case(size, dtype, channels_last=channels_last, channels=channels, device=device_of(impl))
    within_budget(case, impl, "bilinear", False)


@pytest.mark.parametrize("impl", DOUBLE_IMPLS)
def test_reference_is_the_sum_of_its_steps(impl: str) -> None:
    case = make_case((16, 24), torch.float64, affine=False, device=device_of(impl))
    interpolate = torch.nn.functional.interpolate
    expected = case.xs[0] + sum(interpolate(x, size=case.size, mode="bilinear") for x in case.xs[1:])
    assert torch.allclose(run(case, impl, "bilinear", False, None), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("impl", DOUBLE_IMPLS)
@pytest.mark.parametrize(("mode", "align"), MODES)
def test_gradcheck_and_opcheck(impl: str, mode: str, align: bool) -> None:
    case = make_case((5, 7), torch.float64, device=device_of(impl))

    def call(*leaves: Tensor) -> Tensor:
        n = len(case.xs)
        scales, shifts = [None, *leaves[n : 2 * n - 1]], [None, *leaves[2 * n - 1 :]]
        return fuse_sum(
            leaves[:n], scales, shifts, size=case.size, mode=mode, align_corners=align, activation=None, impl=impl
        )

    assert torch.autograd.gradcheck(call, case.leaves(), fast_mode=True)
    absent = torch.empty(0, dtype=torch.float64, device=device_of(impl))
    lists = [[absent if t is None else t for t in ts] for ts in (case.scales, case.shifts)]
    every = FORMS if impl == "cpu" or mode == "bilinear" else EVERY
    given = (case.xs, *lists, list(case.size), mode, align, True, impl)
    torch.library.opcheck(OPS.fuse_sum.default, given, test_utils=every)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("impl", IMPLS)
def test_compiled_whole(impl: str) -> None:
    case = make_case((9, 6), torch.float32, channels_last=True, device=device_of(impl))

    def step(xs: list[Tensor], scale: Tensor, shift: Tensor) -> Tensor:
        affine = [None, scale, scale, None, None]
        summed = fuse_sum(xs, affine, [None if a is None else shift for a in affine], impl=impl) * 2
        return fuse_sum([summed], size=(12, 8), activation=None, impl=impl)

    given = (case.xs, case.scales[1], case.shifts[1])
    leaves = [*case.xs, case.scales[1], case.shifts[1]]
    eager, compiled = step(*given), torch.compile(step, fullgraph=True, backend=compiler_for(impl))(*given)  # type: ignore[arg-type]
    assert torch.equal(eager, compiled)
    for a, b in zip(
        torch.autograd.grad(eager.square().sum(), leaves),  # type: ignore[arg-type]
        torch.autograd.grad(compiled.square().sum(), leaves),  # type: ignore[arg-type]
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_and_infinity_go_where_the_reference_sends_them(impl: str) -> None:
    case = make_case((8, 8), torch.float32, affine=False, device=device_of(impl))
    with torch.no_grad():
        case.xs[1][0, 0, 1, 1] = torch.nan
        case.xs[0][0, 1, 2, 2] = torch.inf
        case.xs[0][0, 2, 3, 3] = -torch.inf
    out, expected = run(case, impl, "bilinear", False), run(case, "reference", "bilinear", False)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    assert out.isnan().any()
    assert out.isinf().any()
    grads = [torch.autograd.grad(o.sum(), case.xs[:2]) for o in (out, expected)]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_empty_batch(impl: str, channels_last: bool) -> None:
    case = make_case((8, 6), torch.float32, channels_last=channels_last, batch=0, device=device_of(impl))
    out = run(case, impl, "bilinear", False)
    assert out.shape == (0, CHANNELS, 8, 6)
    grads = torch.autograd.grad(out.sum(), case.leaves())
    assert all(g.shape == leaf.shape and not g.any() for g, leaf in zip(grads, case.leaves(), strict=True))


@pytest.mark.parametrize("impl", DOUBLE_IMPLS)
def test_strided_views_and_mixed_layouts(impl: str) -> None:
    big = torch.randn(2, 2 * CHANNELS, 20, 22, dtype=torch.float64).to(device_of(impl))
    xs = [big[:, ::2, 2:18, 3:19], torch.randn(2, CHANNELS, 8, 8).double().to(memory_format=torch.channels_last)]
    xs = [x.to(device_of(impl)) for x in xs]
    out = fuse_sum(xs, impl=impl)
    expected = fuse_sum([x.contiguous() for x in xs], impl="reference")
    assert torch.allclose(out, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("begin", [8, 3])
def test_channel_slices_of_stacked_maps(impl: str, layout: torch.memory_format, begin: int) -> None:
    maps = [torch.randn(2, 24, *s).to(device_of(impl), memory_format=layout) for s in ((12, 16), (6, 8))]
    xs = [maps[0][:, :8].contiguous(memory_format=layout), *(m[:, begin : begin + 8] for m in maps)]
    out = fuse_sum(xs, impl=impl)
    assert torch.allclose(out, fuse_sum([x.contiguous() for x in xs], impl="reference"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", DOUBLE_IMPLS)
def test_only_wanted_gradients_and_no_second_order(impl: str) -> None:
    case = make_case((6, 6), torch.float64, device=device_of(impl))
    for leaf in case.leaves():
        leaf.requires_grad_(leaf is case.xs[2])
    out = run(case, impl, "bilinear", False)
    (grad,) = torch.autograd.grad(out.sum(), [case.xs[2]], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), [case.xs[2]])


@pytest.mark.parametrize("activation", ["relu", None])
@pytest.mark.parametrize("impl", IMPLS)
def test_saves_no_term_without_an_affine(impl: str, activation: str | None) -> None:
    """Backward needs the result where ReLU was, and the values of a term only for its scale's gradient."""
    case = make_case((32, 32), torch.float32, affine=False, device=device_of(impl))
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        out = run(case, impl, "bilinear", False, activation)
    assert sum(saved) == (out.numel() if activation else 0)


@pytest.mark.parametrize("align", [False, True])
def test_one_plain_term_is_the_librarys_interpolation(align: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default on a CPU; its backward is the same as that of the others."""
    x = torch.randn(2, CHANNELS, 5, 7, requires_grad=True)
    options: dict[str, Any] = {"size": (16, 9), "activation": None, "align_corners": align}
    out = fuse_sum([x], **options)
    assert torch.equal(out, torch.nn.functional.interpolate(x, size=(16, 9), mode="bilinear", align_corners=align))
    monkeypatch.setenv("HRNET_FAST_IMPL", "reference")
    expected = fuse_sum([x], **options)
    grad = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(o, x, grad)[0] for o in (out, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("xs", "options", "words"),
    [
        ([], {}, "0 terms"),
        ([torch.ones(1, 2, 3, 3)] * 9, {}, "9 terms"),
        ([torch.ones(1, 2, 3, 3), torch.ones(1, 3, 3, 3)], {}, "term 1 has shape"),
        ([torch.ones(2, 3, 3)], {}, "term 0 has shape"),
        ([torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3).double()], {}, "term 1 is torch.float64"),
        ([torch.ones(1, 2, 3, 3, dtype=torch.int32)], {}, "float16 are accepted"),
        ([torch.ones(1, 2, 3, 3)], {"mode": "bicubic"}, "mode"),
        ([torch.ones(1, 2, 3, 3)], {"activation": "gelu"}, "activation"),
        ([torch.ones(1, 2, 3, 3)], {"scales": [torch.ones(2)]}, "both or neither"),
        ([torch.ones(1, 2, 3, 3)], {"scales": [torch.ones(3)], "shifts": [torch.ones(3)]}, "both must be"),
        ([torch.ones(1, 2, 3, 3)], {"scales": [], "shifts": []}, "0 scales"),
    ],
)
def test_what_cannot_be_summed_is_refused(xs: list[Tensor], options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        fuse_sum(xs, **options)  # type: ignore[arg-type]


def test_named_implementations_never_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    xs = [torch.ones(1, 2, 3, 3)]
    for name in ("cuda", "triton"):
        with pytest.raises(ImplementationError, match=f"{name}.*cannot run on cpu"):
            fuse_sum(xs, impl=name)
    monkeypatch.setenv("HRNET_FAST_IMPL", "cuda")
    with pytest.raises(ImplementationError, match="HRNET_FAST_IMPL=cuda"):
        fuse_sum(xs)


TRITON_CASES = """
import torch
from hrnet_fast.ops import fuse_sum
from test_fuse_sum import MODES, make_case, within_budget
torch.manual_seed(0)
cases = (
    ((5, 7), torch.float32, False), ((6, 4), torch.bfloat16, True), ((4, 9), torch.float16, True),
    ((1, 1), torch.float32, True),
)
for k, (mode, align) in enumerate(MODES):  # each mode in both layouts and in two of the dtypes
    for size, dtype, last in (cases[k], cases[(k + 1) % 4]):
        torch.manual_seed(0)  # a case is the same whichever others there are
        within_budget(make_case(size, dtype, channels_last=last, batch=1), "triton", mode, align)
affine = [torch.randn(18), None]
for layout in (torch.contiguous_format, torch.channels_last):  # maps of one size, which are one row in memory
    xs = [torch.randn(2, 18, 5, 7).contiguous(memory_format=layout) for _ in affine]
    made, expected = (fuse_sum(xs, affine, affine, impl=impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(made, expected)
    assert made.stride() == expected.stride()
print("parity held")
"""


@pytest.mark.slow
@pytest.mark.processes
def test_triton_under_its_interpreter() -> None:
    interpreted(TRITON_CASES)


def test_affines_and_sizes_that_cannot_be() -> None:
    x, c = torch.ones(1, 2, 3, 3), torch.ones(2)
    for scale in (c.to("meta"), c.to(torch.int64), c.to(torch.complex64)):
        with pytest.raises(InputError, match="affine of"):
            fuse_sum([x], [scale], [c])
    for size in ((-1, 3), (3.5, 3), (3, 3, 3)):
        with pytest.raises(InputError, match="two integers"):
            fuse_sum([x], size=size)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without pixels"):
        fuse_sum([x, torch.ones(1, 2, 0, 3)])
