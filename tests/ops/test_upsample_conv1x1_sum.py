"""``upsample_conv1x1_sum``: every implementation against the paper's order, upsampled first, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from operator_cases import (
    EVERY,
    FORMS,
    IMPLS,
    LAYOUTS,
    ROUNDING,
    compiler_for,
    copies,
    device_of,
    distance,
    interpreted,
    widest,
)
from operator_cases import within_budget as judge
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from hrnet_fast import ImplementationError, InputError
from hrnet_fast.ops import upsample_conv1x1_sum
from hrnet_fast.reference.upsample_conv1x1_sum import upsample_conv1x1_sum as reference

OPS = torch.ops.hrnet_fast
MODES = [("nearest", False), ("bilinear", False), ("bilinear", True)]
SIZES = [(16, 24), (17, 25), (65, 97), (1, 1), (5, 1)]
OUT = 6
# Channels of the terms and how much coarser each is; those of OUT channels and ratio 1 or 8 are added as they are.
TERMS = [(OUT, 1), (18, 2), (33, 4), (5, 1), (OUT, 8)]


@dataclass
class Case:
    xs: list[Tensor]
    weights: list[Tensor | None]
    bias: Tensor | None
    size: tuple[int, int]
    mode: str = "bilinear"
    align: bool = False

    def to(self, dtype: torch.dtype) -> Case:
        bias = self.bias
        if bias is not None:
            bias = copies([bias], dtype if dtype.itemsize > bias.dtype.itemsize else bias.dtype)[0]
        return replace(self, xs=copies(self.xs, dtype), weights=copies(self.weights, dtype), bias=bias)

    def leaves(self) -> list[Tensor]:
        return [t for t in (*self.xs, *self.weights, self.bias) if t is not None]

    def run(self, impl: str, activation: str | None = "relu") -> Tensor:
        return upsample_conv1x1_sum(
            self.xs, self.weights, bias=self.bias, size=self.size, mode=self.mode, align_corners=self.align,
            activation=activation, impl=impl,
        )  # fmt: skip

    def plain(self) -> Tensor:
        matrices = [None if w is None else w.flatten(1) for w in self.weights]
        return reference(self.xs, matrices, self.bias, self.size, self.mode, self.align, False)

    def oracle(self) -> Tensor:
        """The paper's order: upsample, then convolve; here all terms at once, as one convolution of their stack."""
        align = {"align_corners": self.align} if self.mode == "bilinear" else {}
        maps = [interpolate(x, size=self.size, mode=self.mode, **align) for x in self.xs]
        eye = torch.eye(OUT, dtype=self.xs[0].dtype, device=self.xs[0].device)
        matrices = [eye if w is None else w.flatten(1) for w in self.weights]
        return conv2d(torch.cat(maps, 1), torch.cat(matrices, 1)[:, :, None, None], self.bias)

    def gate(self, out: Tensor) -> Tensor:
        return (out > 0).double()


def make_case(
    size: tuple[int, int], dtype: torch.dtype, mode: str = "bilinear", align: bool = False, *,
    channels_last: bool = False, batch: int = 2, device: str = "cpu", terms: list[tuple[int, int]] = TERMS,
) -> Case:  # fmt: skip
    """Terms of a fusion; every one but the first is a slice of a wider map."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    xs, weights = [], []
    for k, (channels, ratio) in enumerate(terms):
        small = tuple(max(1, -(-s // ratio)) for s in size)
        wide = torch.randn(batch, channels + (3 if k else 0), *small, device=device).to(dtype)
        xs.append(wide.contiguous(memory_format=layout)[:, -channels:].detach().requires_grad_())
        weight = torch.randn(OUT, channels, *([1, 1] if k % 2 else []), device=device) / channels**0.5
        weights.append(None if channels == OUT else weight.to(dtype).requires_grad_())
    wide_type = torch.float64 if dtype == torch.float64 else torch.float32
    bias = torch.randn(OUT, device=device, dtype=wide_type).requires_grad_()
    return Case(xs, weights, bias, size, mode, align)


@pytest.mark.parametrize(("dtype", "channels_last"), LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("mode", "align"), MODES)
@pytest.mark.parametrize("impl", IMPLS)
def test_parity(
    impl: str, mode: str, align: bool, size: tuple[int, int], dtype: torch.dtype, channels_last: bool
) -> None:
    if impl == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernels compute in float32")
    judge(make_case(size, dtype, mode, align, channels_last=channels_last, device=device_of(impl)), impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_channels_of_wide_networks(impl: str) -> None:
    """More channels than a tile holds, all divisible by 16: vectors on a GPU."""
    terms = [(48, 1), (96, 2), (192, 4)]
    dtype = torch.bfloat16
    case = make_case((9, 14), dtype, channels_last=True, device=device_of(impl), terms=terms)
    case.weights = [torch.randn(80, c, device=device_of(impl)).to(dtype) / 16 for c, _ in terms]
    case.bias = None
    out = case.run(impl, None)
    align = {"mode": "bilinear", "size": case.size}
    exact = sum(
        conv2d(interpolate(x.double(), **align), w.double()[:, :, None, None])
        for x, w in zip(case.xs, case.weights, strict=True)
    )
    assert distance(out, exact) < 2 * distance(case.run("reference", None), exact) + 2 * ROUNDING[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["reference"])
@pytest.mark.parametrize(("mode", "align"), MODES)
def test_gradcheck_and_opcheck(impl: str, mode: str, align: bool) -> None:
    case = make_case((5, 7), torch.float64, mode, align)

    def call(*leaves: Tensor) -> Tensor:
        n, rest = len(case.xs), iter(leaves[len(case.xs) : -1])
        weights = [None if w is None else next(rest) for w in case.weights]
        return replace(case, xs=list(leaves[:n]), weights=weights, bias=leaves[-1]).run(impl)

    assert torch.autograd.gradcheck(call, case.leaves(), fast_mode=True)
    absent = torch.empty(0, dtype=torch.float64)
    matrices = [absent if w is None else w.detach().flatten(1).requires_grad_() for w in case.weights]
    for channels_last in (False, True):
        xs = make_case((5, 7), torch.float64, channels_last=channels_last).xs
        arguments = (xs, matrices, case.bias, list(case.size), mode, align, True, impl)
        every = FORMS if channels_last or mode == "bilinear" else EVERY
        torch.library.opcheck(OPS.upsample_conv1x1_sum.default, arguments, test_utils=every)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("impl", IMPLS)
def test_compiled_whole(impl: str) -> None:
    case = make_case((9, 6), torch.float32, channels_last=True, device=device_of(impl))

    def step(xs: list[Tensor], weights: list[Tensor | None], bias: Tensor) -> Tensor:
        return upsample_conv1x1_sum(xs, weights, bias=bias, impl=impl)

    given = (case.xs, case.weights, case.bias)
    eager, compiled = step(*given), torch.compile(step, fullgraph=True, backend=compiler_for(impl))(*given)
    assert torch.equal(eager, compiled)
    assert eager.stride() == compiled.stride()
    for a, b in zip(
        torch.autograd.grad(eager.square().sum(), case.leaves()),
        torch.autograd.grad(compiled.square().sum(), case.leaves()),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_and_infinity_go_where_the_reference_sends_them(impl: str) -> None:
    case = make_case((8, 8), torch.float32, device=device_of(impl))
    with torch.no_grad():
        case.xs[1][0, 0, 1, 1] = torch.nan
        case.xs[2][1, 4, 1, 1] = torch.inf
        case.xs[0][0, 1, 7, 7] = torch.inf
        case.xs[0][0, 2, 7, 6] = -torch.inf
    out, expected = case.run(impl), case.run("reference")
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    assert out.isnan().any()
    assert out.isinf().any()
    assert not out.isnan().all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_empty_batch(impl: str, channels_last: bool) -> None:
    case = make_case((8, 6), torch.float32, channels_last=channels_last, batch=0, device=device_of(impl))
    out = case.run(impl)
    assert out.shape == (0, OUT, 8, 6)
    grads = torch.autograd.grad(out.sum(), case.leaves())
    assert all(g.shape == leaf.shape and not g.any() for g, leaf in zip(grads, case.leaves(), strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_only_wanted_gradients_and_no_second_order(impl: str) -> None:
    case = make_case((6, 6), widest(impl), device=device_of(impl))
    full = torch.autograd.grad(case.run(impl).sum(), case.leaves())
    for k, leaf in enumerate(case.leaves()):
        for other in case.leaves():
            other.requires_grad_(other is leaf)
        (grad,) = torch.autograd.grad(case.run(impl).sum(), [leaf], create_graph=True)
        assert torch.allclose(grad, full[k], rtol=1e-5, atol=1e-5)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(grad.sum(), [leaf])


def test_saves_the_result_and_the_terms_with_weights() -> None:
    case = make_case((32, 32), torch.float32)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        out = case.run("reference")
    weighted = [t.numel() for x, w in zip(case.xs, case.weights, strict=True) if w is not None for t in (x, w)]
    assert sum(saved) == out.numel() + sum(weighted) + OUT


def test_under_autocast() -> None:
    case = make_case((8, 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = case.run("auto")
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, case.to(torch.bfloat16).run("auto"))
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.sum(), case.leaves()))


X, W = torch.ones(1, 2, 3, 3), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("xs", "weights", "options", "words"),
    [
        ([], [], {}, "0 terms"),
        ([X] * 9, [W] * 9, {}, "9 terms"),
        ([X], [W, W], {}, "2 weights for 1 terms"),
        ([X], [torch.ones(4, 2, 3, 3)], {}, "weight 0 has shape"),
        ([X], [torch.ones(2)], {}, "weight 0 has shape"),
        ([X, X], [W, torch.ones(5, 2)], {}, r"must be \[4, 2\]"),
        ([X], [torch.ones(4, 3)], {}, r"must be \[4, 2\]"),
        ([X, X], [W, None], {}, "no weight; the result has 4"),
        ([X, torch.ones(2, 2, 3, 3)], [W, W], {}, "term 1 has shape"),
        ([X, X.double()], [W, W], {}, "term 1 is torch.float64"),
        ([X], [W.double()], {}, "weight 0 is torch.float64"),
        ([X.int()], [W.int()], {}, "torch.int32 given"),
        ([X], [W], {"bias": torch.ones(3)}, "bias is"),
        ([X], [W], {"bias": torch.ones(4, dtype=torch.int64)}, "bias is torch.int64"),
        ([X], [W], {"mode": "bicubic"}, "mode"),
        ([X], [W], {"activation": "gelu"}, "activation"),
        ([X], [W], {"size": (3.5, 3)}, "two integers"),
        ([X], [W], {"size": (0, 3)}, "at least 1"),
        ([torch.ones(1, 2, 0, 3)], [W], {"size": (2, 2)}, "without pixels"),
    ],
)
def test_what_does_not_fit_is_refused(
    xs: list[Tensor], weights: list[Tensor | None], options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        upsample_conv1x1_sum(xs, weights, **options)  # type: ignore[arg-type]


def test_named_implementations_never_fall_back() -> None:
    for name in ("cpu", "cuda"):
        with pytest.raises(ImplementationError, match=f"{name}.*cannot run on cpu"):
            upsample_conv1x1_sum([X], [W], impl=name)


TRITON_CASES = """
import torch
from test_upsample_conv1x1_sum import *
torch.manual_seed(0)
terms = [(OUT, 1), (18, 2), (5, 1), (OUT, 3)]
nearest, bilinear, aligned = MODES
for mode, size, dtype, last in (
    (nearest, (5, 4), torch.float32, False), (bilinear, (3, 4), torch.bfloat16, True),
    (bilinear, (4, 3), torch.float16, False), (aligned, (3, 4), torch.float32, True),
    (bilinear, (1, 3), torch.float32, True), (aligned, (1, 1), torch.bfloat16, True),
):
    judge(make_case(size, dtype, *mode, channels_last=last, batch=1, terms=terms), "triton")
test_channels_of_wide_networks("triton")
test_nan_and_infinity_go_where_the_reference_sends_them("triton")
test_empty_batch("triton", True)
print("parity held")
"""


@pytest.mark.slow
@pytest.mark.processes
def test_triton_under_its_interpreter() -> None:
    interpreted(TRITON_CASES)


def test_offsets_are_wide_only_where_one_image_needs_them() -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    from hrnet_fast.kernels.triton.upsample_conv1x1_sum import vectors, wide

    batch = torch.empty(64, 48, 1024, 1024, device="meta")  # past 2^31 elements, by its images
    assert not wide([batch], 1)
    assert wide([X], 2**31)
    assert wide([X, torch.empty(1, 2**11 + 1, 1024, 1024, device="meta")], 1)
    assert vectors([torch.empty(2, 48, 5, 7).to(memory_format=torch.channels_last)])
    assert not vectors([torch.empty(2, 18, 5, 7).to(memory_format=torch.channels_last)])
    assert not vectors([torch.empty(2, 48, 5, 7)])
