"""``strided_conv_chain``: every implementation against one convolution per input in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from operator_cases import (
    EVERY,
    FORMS,
    IMPLS,
    LAYOUTS,
    compiler_for,
    copies,
    device_of,
    interpreted,
    on_cpu,
    widest,
    within_budget,
)
from torch import Tensor
from torch.nn.functional import conv2d

from hrnet_fast import ImplementationError, InputError
from hrnet_fast.ops import strided_conv_chain
from hrnet_fast.reference.strided_conv_chain import strided_conv_chain as reference

OPS = torch.ops.hrnet_fast
SIZES = [(16, 24), (17, 25), (65, 97), (1, 1), (6, 1)]
OUT = 20
CHANNELS = [3, 18, 33]
RELUS = [None, True, (3, 17), (0, 5), (20, 20)]


@dataclass
class Case:
    xs: list[Tensor]
    weight: Tensor
    bias: Tensor | None
    addend: Tensor | None
    relu: tuple[int, int] | bool | None

    def to(self, dtype: torch.dtype) -> Case:
        xs, (weight, addend) = copies(self.xs, dtype), copies([self.weight, self.addend], dtype)
        bias = self.bias
        if bias is not None:
            bias = copies([bias], dtype if dtype.itemsize > bias.dtype.itemsize else bias.dtype)[0]
        return replace(self, xs=xs, weight=weight, bias=bias, addend=addend)

    def leaves(self) -> list[Tensor]:
        return [t for t in (*self.xs, self.weight, self.bias, self.addend) if t is not None]

    def run(self, impl: str) -> Tensor:
        return strided_conv_chain(self.xs, self.weight, bias=self.bias, addend=self.addend, relu=self.relu, impl=impl)

    def plain(self) -> Tensor:
        return reference(self.xs, self.weight, self.bias, self.addend, (0, 0))

    def oracle(self) -> Tensor:
        """A sum of one convolution per input, as the authors' fusion computes it."""
        parts = self.weight.split([x.shape[1] for x in self.xs], dim=1)
        total = sum(conv2d(x, w, stride=2, padding=1) for x, w in zip(self.xs, parts, strict=True))
        total = total if self.bias is None else total + self.bias.view(1, -1, 1, 1)
        return total if self.addend is None else total + self.addend

    def gate(self, out: Tensor) -> Tensor:
        gate = torch.ones_like(out, dtype=torch.float64)
        begin, end = (0, out.shape[1] if self.relu else 0) if not isinstance(self.relu, tuple) else self.relu
        gate[:, begin:end] = (out[:, begin:end] > 0).double()
        return gate


def make_case(
    size: tuple[int, int], dtype: torch.dtype, *, channels_last: bool = False, batch: int = 2, device: str = "cpu",
    channels: list[int] = CHANNELS, outputs: int = OUT, relu: tuple[int, int] | bool | None = (3, 17),
    epilogue: bool = True,
) -> Case:  # fmt: skip
    """Inputs of which the last is a slice of a wider map."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    xs = []
    for k, count in enumerate(channels):
        wide = torch.randn(batch, count + (5 if k + 1 == len(channels) else 0), *size, device=device).to(dtype)
        xs.append(wide.contiguous(memory_format=layout)[:, :count].detach().requires_grad_())
    weight = (torch.randn(outputs, sum(channels), 3, 3, device=device) / (9 * sum(channels)) ** 0.5).to(dtype)
    weight = weight.contiguous(memory_format=layout).requires_grad_()
    small = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    bias = torch.randn(outputs, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    addend = torch.randn(batch, outputs, *small, device=device).to(dtype).contiguous(memory_format=layout)
    if not epilogue:
        return Case(xs, weight, None, None, relu)
    return Case(xs, weight, bias.requires_grad_(), addend.requires_grad_(), relu)


@pytest.mark.parametrize(("dtype", "channels_last"), LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_parity(impl: str, size: tuple[int, int], dtype: torch.dtype, channels_last: bool) -> None:
    if impl == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernels compute in float32")
    within_budget(make_case(size, dtype, channels_last=channels_last, device=device_of(impl)), impl)


@pytest.mark.parametrize("epilogue", [False, True])
@pytest.mark.parametrize("relu", RELUS, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_epilogues(impl: str, relu: tuple[int, int] | bool | None, epilogue: bool) -> None:
    case = make_case((9, 8), torch.float32, channels=[7], device=device_of(impl), relu=relu, epilogue=epilogue)
    within_budget(case, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_channels_of_wide_networks(impl: str) -> None:
    """More channels than a tile holds, all divisible by 16: vectors on a GPU."""
    case = make_case((7, 10), torch.bfloat16, channels_last=True, device=device_of(impl), channels=[48, 64],
                     outputs=80, relu=(48, 80))  # fmt: skip
    case.xs = [x.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for x in case.xs]
    within_budget(case, impl)


@pytest.mark.slow
@pytest.mark.parametrize("relu", [True, (3, 17)], ids=str)
def test_gradcheck_and_opcheck(relu: tuple[int, int] | bool) -> None:
    for channels_last in (False, True):
        case = make_case((5, 6), torch.float64, channels_last=channels_last, relu=relu, channels=[2, 3])

        def call(*leaves: Tensor) -> Tensor:
            *xs, weight, bias, addend = leaves
            return strided_conv_chain(xs, weight, bias=bias, addend=addend, relu=relu, impl="reference")

        assert torch.autograd.gradcheck(call, case.leaves(), fast_mode=True)
        assert torch.autograd.gradgradcheck(call, case.leaves(), fast_mode=True)
        begin, end = relu if isinstance(relu, tuple) else (0, OUT)
        for epilogue in ((case.bias, case.addend), (None, None)):
            arguments = (case.xs, case.weight, *epilogue, begin, end, "reference")
            every = FORMS if channels_last or relu is not True else EVERY
            torch.library.opcheck(OPS.strided_conv_chain.default, arguments, test_utils=every)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("impl", IMPLS)
def test_compiled_whole(impl: str) -> None:
    case = make_case((9, 6), torch.float32, channels_last=True, device=device_of(impl))

    def step(xs: list[Tensor], weight: Tensor, bias: Tensor, addend: Tensor) -> Tensor:
        return strided_conv_chain(xs, weight, bias=bias, addend=addend, relu=(3, 17), impl=impl)

    given = (case.xs, case.weight, case.bias, case.addend)
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
    case = make_case((8, 9), torch.float32, device=device_of(impl))
    with torch.no_grad():
        case.xs[1][0, 0, 1, 1] = torch.nan
        case.xs[2][1, 4, 7, 8] = torch.inf
        case.addend[0, 1, 3, 3] = torch.inf
        case.addend[0, 5, 3, 3] = torch.nan
        case.addend[0, 2, 3, 4] = -torch.inf
    out, expected = case.run(impl).cpu(), on_cpu(case).run("reference")
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert out.isnan().any()
    assert out.isinf().any()
    assert not out.isnan().all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_empty_batch(impl: str, channels_last: bool) -> None:
    case = make_case((8, 5), torch.float32, channels_last=channels_last, batch=0, device=device_of(impl))
    out = case.run(impl)
    assert out.shape == (0, OUT, 4, 3)
    grads = torch.autograd.grad(out.sum(), case.leaves())
    assert all(g.shape == leaf.shape and not g.any() for g, leaf in zip(grads, case.leaves(), strict=True))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("relu", [None, (3, 17)], ids=str)
def test_only_wanted_gradients(impl: str, relu: tuple[int, int] | None) -> None:
    case = make_case((6, 6), widest(impl), device=device_of(impl), relu=relu)
    full = torch.autograd.grad(case.run(impl).sum(), case.leaves())
    for k, leaf in enumerate(case.leaves()):
        for other in case.leaves():
            other.requires_grad_(other is leaf)
        (grad,) = torch.autograd.grad(case.run(impl).sum(), [leaf])
        assert torch.allclose(grad, full[k], rtol=1e-5, atol=1e-5)


def test_saves_no_concatenation() -> None:
    case = make_case((32, 32), torch.float32)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        out = case.run("reference")
    assert sum(saved) == out.numel() + sum(t.numel() for t in (*case.xs, case.weight)) + OUT
    case.weight.requires_grad_(False)
    case.relu = None
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        case.run("reference")
    assert sum(saved) == case.weight.numel() + OUT


def test_under_autocast() -> None:
    case = make_case((8, 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = case.run("auto")
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.sum(), case.leaves()))


X, W = torch.ones(1, 2, 5, 4), torch.ones(4, 2, 3, 3)


@pytest.mark.parametrize(
    ("xs", "weight", "options", "words"),
    [
        ([], W, {}, "0 inputs"),
        ([X] * 9, W, {}, "9 inputs"),
        ([X, torch.ones(1, 2, 5, 5)], W, {}, "input 1 has shape"),
        ([torch.ones(2, 5, 4)], W, {}, "input 0 has shape"),
        ([torch.ones(1, 2, 0, 4)], W, {}, "not empty"),
        ([X, X.double()], torch.ones(4, 4, 3, 3), {}, "input 1 is torch.float64"),
        ([X.int()], W.int(), {}, "torch.int32 given"),
        ([X, X], W, {}, r"must be \[C_out, 4, 3, 3\]"),
        ([X], torch.ones(4, 2, 1, 1), {}, r"must be \[C_out, 2, 3, 3\]"),
        ([X], torch.ones(4, 2), {}, r"must be \[C_out, 2, 3, 3\]"),
        ([X], W.half(), {}, "weight is torch.float16"),
        ([X], W, {"bias": torch.ones(3)}, "bias is"),
        ([X], W, {"addend": torch.ones(1, 4, 2, 2)}, r"must be torch.float32 \[1, 4, 3, 2\]"),
        ([X], W, {"addend": torch.ones(1, 4, 3, 2).double()}, "addend is torch.float64"),
        ([X], W, {"relu": (0, 5)}, "no range of the 4"),
        ([X], W, {"relu": (3, 2)}, "no range"),
        ([X], W, {"relu": (1,)}, "two integers"),
        ([X], W, {"relu": "relu"}, "two integers"),
        ([X], W, {"relu": 3}, "two integers"),
    ],
)
def test_what_does_not_fit_is_refused(xs: list[Tensor], weight: Tensor, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        strided_conv_chain(xs, weight, **options)  # type: ignore[arg-type]


def test_named_implementations_never_fall_back() -> None:
    for name in ("cpu", "cuda"):
        with pytest.raises(ImplementationError, match=f"{name}.*cannot run on cpu"):
            strided_conv_chain([X], W, impl=name)


TRITON_CASES = """
import torch
from test_strided_conv_chain import *
torch.manual_seed(0)
for size, dtype, last in (
    ((5, 7), torch.float32, False), ((4, 9), torch.float16, True), ((1, 6), torch.bfloat16, False),
    ((1, 1), torch.float32, True),
):
    within_budget(make_case(size, dtype, channels_last=last), "triton")
for relu in RELUS:
    for epilogue in (False, True):
        test_epilogues("triton", relu, epilogue)
test_channels_of_wide_networks("triton")
test_nan_and_infinity_go_where_the_reference_sends_them("triton")
test_empty_batch("triton", True)
print("parity held")
"""


@pytest.mark.slow
@pytest.mark.processes
def test_triton_under_its_interpreter() -> None:
    interpreted(TRITON_CASES)
