"""``grouped_conv3x3``: every implementation against a sum of nine shifted 1x1 convolutions in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from operator_cases import (
    IMPLS,
    LAYOUTS,
    TRITON,
    compiler_for,
    copies,
    device_of,
    distance,
    interpreted,
    on_cpu,
    widest,
    within_budget,
)
from torch import Tensor
from torch.nn.functional import pad

from hrnet_fast import ImplementationError, InputError
from hrnet_fast.ops import PackedConv3x3, grouped_conv3x3, pack_grouped_conv3x3
from hrnet_fast.reference.grouped_conv3x3 import grouped_conv3x3 as reference

OPS = torch.ops.hrnet_fast
# Channels of the first stages' widths and of networks whose channels are no vectors, at resolutions that halve.
SHAPES = [(18, 18, 11, 17), (30, 36, 6, 9), (40, 44, 3, 5), (48, 20, 1, 1)]
SMALL = [(3, 5, 5, 6), (4, 2, 1, 3)]


@dataclass
class Case:
    """Four branches as one: results are flattened and joined, so that one budget holds for them together."""

    xs: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor | None]
    residuals: list[Tensor | None]
    relu: bool

    def to(self, dtype: torch.dtype) -> Case:
        xs, weights, residuals = (copies(t, dtype) for t in (self.xs, self.weights, self.residuals))
        wide = [b if b is None else torch.promote_types(b.dtype, dtype) for b in self.biases]
        biases = [None if b is None else copies([b], d if d.itemsize > 4 else b.dtype)[0]
                  for b, d in zip(self.biases, wide, strict=True)]  # fmt: skip
        return replace(self, xs=xs, weights=weights, biases=biases, residuals=residuals)

    def leaves(self) -> list[Tensor]:
        return [t for t in (*self.xs, *self.weights, *self.biases, *self.residuals) if t is not None]

    def outs(self, impl: str) -> list[Tensor]:
        options = {"biases": self.biases, "residuals": self.residuals, "relu": self.relu}
        return grouped_conv3x3(self.xs, self.weights, impl=impl, **options)

    def run(self, impl: str) -> Tensor:
        return joined(self.outs(impl))

    def plain(self) -> Tensor:
        return joined(reference(self.xs, self.weights, self.biases, self.residuals, False))

    def oracle(self) -> Tensor:
        outs = []
        for x, weight, bias, residual in zip(self.xs, self.weights, self.biases, self.residuals, strict=True):
            height, width = x.shape[2:]
            around = pad(x, (1, 1, 1, 1))
            total = sum(
                torch.einsum("nchw,oc->nohw", around[:, :, i : i + height, j : j + width], weight[:, :, i, j])
                for i in range(3)
                for j in range(3)
            )
            total = total if bias is None else total + bias.view(1, -1, 1, 1)
            outs.append(total if residual is None else total + residual)
        return joined(outs)

    def gate(self, out: Tensor) -> Tensor:
        return (out > 0).double() if self.relu else torch.ones_like(out, dtype=torch.float64)


def joined(outs: list[Tensor]) -> Tensor:
    return torch.cat([out.flatten() for out in outs])


def make_case(
    dtype: torch.dtype, shapes: list[tuple[int, int, int, int]] = SHAPES, *, channels_last: bool = True,
    batch: int = 2, device: str = "cpu", relu: bool = True, biases: tuple[int, ...] = (0, 1, 3),
    residuals: tuple[int, ...] = (0, 2, 3),
) -> Case:  # fmt: skip
    """Branches (C_in, C_out, H, W), of which `biases` and `residuals` have one; the last input is a slice."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    case = Case([], [], [], [], relu)
    for k, (c_in, c_out, height, width) in enumerate(shapes):
        whole = torch.randn(batch, c_in + (5 if k + 1 == len(shapes) else 0), height, width, device=device).to(dtype)
        case.xs.append(whole.contiguous(memory_format=layout)[:, :c_in].detach().requires_grad_())
        weight = (torch.randn(c_out, c_in, 3, 3, device=device) / (9 * c_in) ** 0.5).to(dtype)
        case.weights.append(weight.contiguous(memory_format=layout).requires_grad_())
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        bias = torch.randn(c_out, device=device, dtype=wide).requires_grad_() if k in biases else None
        case.biases.append(bias)
        residual = torch.randn(batch, c_out, height, width, device=device).to(dtype).contiguous(memory_format=layout)
        case.residuals.append(residual.requires_grad_() if k in residuals else None)
    return case


@pytest.mark.parametrize(("dtype", "channels_last"), LAYOUTS)
@pytest.mark.parametrize("impl", IMPLS)
def test_parity(impl: str, dtype: torch.dtype, channels_last: bool) -> None:
    if impl == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernels compute in float32")
    within_budget(make_case(dtype, channels_last=channels_last, batch=3, device=device_of(impl)), impl)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("biases", "residuals"), [((), ()), ((0,), ()), ((), (1,)), ((0, 1), (0, 1))], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_epilogues(impl: str, biases: tuple[int, ...], residuals: tuple[int, ...], relu: bool) -> None:
    options = {"relu": relu, "biases": biases, "residuals": residuals, "device": device_of(impl)}
    within_budget(make_case(torch.float32, SMALL, **options), impl)  # type: ignore[arg-type]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("count", [1, 8])
def test_any_number_of_branches_in_any_order(impl: str, count: int) -> None:
    """The kernel does the longest sums first; results come in the order of the inputs."""
    shapes = [(1 + 7 * k % 11, 1 + k, 3 + k % 3, 4 - k % 4) for k in range(count)]
    case = make_case(torch.float32, shapes, device=device_of(impl))
    within_budget(case, impl)
    out = case.outs(impl)
    assert [tuple(o.shape[1:]) for o in out] == [(c, h, w) for _, c, h, w in shapes]
    assert all(o.is_contiguous(memory_format=torch.channels_last) for o in out)


@pytest.mark.parametrize("impl", IMPLS)
def test_channels_of_wide_networks(impl: str) -> None:
    """More channels than a tile holds, all divisible by 16: vectors on a GPU."""
    case = make_case(torch.bfloat16, [(64, 128, 4, 3), (128, 64, 2, 2)], device=device_of(impl))
    case.xs[-1] = case.xs[-1].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    within_budget(case, impl)


@pytest.mark.parametrize("impl", [TRITON])
def test_products_of_tf32_where_convolutions_may(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's default. Not judged by the library, which takes TF32 for some shapes only."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    case = make_case(torch.float32, device=device_of(impl))
    out, exact = case.run(impl), case.to(torch.float64)
    assert distance(out, exact.oracle() * exact.gate(out)) <= 2.0**-9


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_equals_unpacked(impl: str, dtype: torch.dtype) -> None:
    case = make_case(dtype, device=device_of(impl))
    packed = pack_grouped_conv3x3(case.weights, case.biases)
    with torch.no_grad():
        for _ in range(2):
            found = grouped_conv3x3(case.xs, packed, residuals=case.residuals, impl=impl)
            if impl == "triton":
                assert torch.equal(joined(found), case.run(impl))
            else:  # whose convolution may depend on how a weight lies
                assert torch.allclose(
                    joined(found), case.run(impl), rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-5
                )
    assert not packed.weight.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradcheck_and_opcheck(channels_last: bool, relu: bool) -> None:
    case = make_case(torch.float64, SMALL, channels_last=channels_last, relu=relu, biases=(0,), residuals=(1,))

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        x, other, weight, last, bias, residual = leaves
        options = {"biases": [bias, None], "residuals": [None, residual], "relu": relu}
        return tuple(grouped_conv3x3([x, other], [weight, last], impl="reference", **options))

    assert torch.autograd.gradcheck(call, case.leaves(), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, case.leaves(), fast_mode=True)
    absent = case.xs[0].new_empty(0)
    biases = [absent if b is None else b for b in case.biases]
    residuals = [absent if r is None else r for r in case.residuals]
    torch.library.opcheck(OPS.grouped_conv3x3.default, (case.xs, case.weights, biases, residuals, relu, "reference"))
    xs, residuals = ([t.detach() for t in tensors] for tensors in (case.xs, residuals))
    packed = pack_grouped_conv3x3(case.weights, case.biases)
    given = (xs, packed.weight, packed.bias, [c for pair in packed.channels for c in pair], residuals, relu, "auto")
    torch.library.opcheck(OPS.grouped_conv3x3_packed.default, given)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("impl", IMPLS)
def test_compiled_whole(impl: str) -> None:
    case = make_case(torch.float32, SMALL, device=device_of(impl))

    def step(case: list[list[Tensor | None]]) -> list[Tensor]:
        return grouped_conv3x3(case[0], case[1], biases=case[2], residuals=case[3], impl=impl)  # type: ignore[arg-type]

    given = [case.xs, case.weights, case.biases, case.residuals]
    eager, compiled = step(given), torch.compile(step, fullgraph=True, backend=compiler_for(impl))(given)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(eager, compiled, strict=True))
    for a, b in zip(
        torch.autograd.grad(joined(eager).square().sum(), case.leaves()),
        torch.autograd.grad(joined(compiled).square().sum(), case.leaves()),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    packed = pack_grouped_conv3x3(case.weights, case.biases)
    with torch.no_grad():
        call = torch.compile(
            lambda xs: grouped_conv3x3(xs, packed, relu=False, impl=impl), fullgraph=True, backend="aot_eager"
        )
        for a, b in zip(call(case.xs), grouped_conv3x3(case.xs, packed, relu=False, impl=impl), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_and_infinity_go_where_the_reference_sends_them(impl: str) -> None:
    case = make_case(torch.float32, device=device_of(impl))
    with torch.no_grad():
        case.xs[1][0, 0, 1, 1] = torch.nan
        case.xs[3][1, 4, 0, 0] = torch.inf
        for k, value in enumerate((torch.inf, -torch.inf, torch.nan)):
            case.residuals[2][1, k, 2, 3] = value  # type: ignore[index]
    out, expected = case.run(impl).cpu(), on_cpu(case).run("reference")
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert out.isnan().any()
    assert out.isinf().any()
    assert not out.isnan().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch(impl: str) -> None:
    case = make_case(torch.float32, batch=0, device=device_of(impl))
    assert [tuple(o.shape) for o in case.outs(impl)] == [(0, *s[1:]) for s in SHAPES]
    grads = torch.autograd.grad(case.run(impl).sum(), case.leaves())
    assert all(g.shape == leaf.shape and not g.any() for g, leaf in zip(grads, case.leaves(), strict=True))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("relu", [False, True])
def test_only_wanted_gradients(impl: str, relu: bool) -> None:
    case = make_case(widest(impl), SMALL, device=device_of(impl), relu=relu)
    full = torch.autograd.grad(case.run(impl).sum(), case.leaves())
    for k, leaf in enumerate(case.leaves()):
        for other in case.leaves():
            other.requires_grad_(other is leaf)
        (grad,) = torch.autograd.grad(case.run(impl).sum(), [leaf])
        assert torch.allclose(grad, full[k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_where_one_result_is_used(impl: str) -> None:
    case = make_case(widest(impl), SMALL, device=device_of(impl))
    used, unused = torch.autograd.grad(case.outs(impl)[0].sum(), case.xs, allow_unused=True)
    assert used.any()
    assert unused is None or not unused.any()


def test_packed_weights_have_no_gradient() -> None:
    case = make_case(torch.float32, SMALL)
    outs = grouped_conv3x3(case.xs, pack_grouped_conv3x3(case.weights))
    with pytest.raises(RuntimeError, match="autograd"):
        joined(outs).sum().backward()


def test_under_autocast() -> None:
    case = make_case(torch.float32, SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        out = case.run("auto")
        packed = grouped_conv3x3(case.xs, pack_grouped_conv3x3(case.weights, case.biases), residuals=case.residuals)
    assert out.dtype == torch.bfloat16
    assert torch.equal(joined(packed), out)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.sum(), case.leaves()))


X, W = torch.ones(1, 2, 5, 4), torch.ones(4, 2, 3, 3)
PACKED = pack_grouped_conv3x3([W])


@pytest.mark.parametrize(
    ("xs", "weights", "options", "words"),
    [
        ([], [W], {}, "0 inputs"),
        ([X] * 9, [W] * 9, {}, "9 inputs"),
        ([X], [], {}, "0 weights"),
        ([X], [W, W], {}, "2 weights for 1 inputs"),
        ([X, X], PACKED, {}, "1 weights for 2 inputs"),
        ([X, torch.ones(2, 2, 5, 5)], [W, W], {}, "input 1 has shape"),
        ([torch.ones(2, 5, 4)], [W], {}, "input 0 has shape"),
        ([torch.ones(1, 2, 0, 4)], [W], {}, "not empty"),
        ([X, X.double()], [W, W], {}, "input 1 is torch.float64"),
        ([X.int()], [W.int()], {}, "torch.int32 given"),
        ([X.int()], PACKED, {}, "torch.int32 given"),
        ([torch.ones(1, 3, 5, 4)], [W], {}, "input 0 has 3 channels; its weight takes 2"),
        ([X], [torch.ones(4, 2, 1, 1)], {}, r"must be \[C_out, C_in, 3, 3\]"),
        ([X], [torch.ones(0, 2, 3, 3)], {}, r"must be \[C_out, C_in, 3, 3\]"),
        ([X], [torch.ones(4, 2)], {}, r"must be \[C_out, C_in, 3, 3\]"),
        ([X, X], [W, W.half()], {}, "weight 1 is torch.float16"),
        ([X], [W.half()], {}, "weight 0 is torch.float16"),
        ([X.half()], PACKED, {}, "packed weight is torch.float32"),
        ([X], [W], {"biases": [torch.ones(3)]}, "bias 0 is"),
        ([X], [W], {"biases": []}, "0 biases for 1 branches"),
        ([X], PACKED, {"biases": [torch.ones(4)]}, "hold their biases"),
        ([X], [W], {"residuals": [None, None]}, "2 residuals for 1 branches"),
        ([X], [W], {"residuals": [torch.ones(1, 4, 2, 2)]}, r"must be torch.float32 \[1, 4, 5, 4\]"),
        ([X], PACKED, {"residuals": [torch.ones(1, 4, 5, 4).double()]}, "residual 0 is torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused(
    xs: list[Tensor], weights: list[Tensor] | PackedConv3x3, options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        grouped_conv3x3(xs, weights, **options)  # type: ignore[arg-type]


def test_named_implementations_never_fall_back() -> None:
    for name in ("cpu", "cuda"):
        for weights in ([W], PACKED):
            with pytest.raises(ImplementationError, match=f"{name}.*cannot run on cpu"):
                grouped_conv3x3([X], weights, impl=name)


TRITON_CASES = """
import torch
from test_grouped_conv3x3 import *
from hrnet_fast.kernels.triton import grouped_conv3x3 as kernel
torch.use_deterministic_algorithms(True, warn_only=True)  # with it, fresh memory is NaN
torch.manual_seed(0)
for dtype, last, batch in ((torch.float32, True, 2), (torch.bfloat16, False, 1), (torch.float16, True, 1)):
    within_budget(make_case(dtype, channels_last=last, batch=batch), "triton")
mixed = make_case(torch.bfloat16, SMALL, residuals=(0, 1))
mixed.residuals[1] = mixed.residuals[1].detach().contiguous().requires_grad_()
mixed.xs[0] = mixed.xs[0].detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
within_budget(mixed, "triton")
for relu in (False, True):
    for biases, residuals in (((0,), ()), ((), (1,))):
        test_epilogues("triton", biases, residuals, relu)
for count in (1, 8):
    test_any_number_of_branches_in_any_order("triton", count)
test_channels_of_wide_networks("triton")
test_packed_equals_unpacked("triton", torch.bfloat16)
test_nan_and_infinity_go_where_the_reference_sends_them("triton")
test_empty_batch("triton")
kernel.far = lambda *_: True
kernel.launch_plan.cache_clear()
within_budget(make_case(torch.float32, SMALL), "triton")
print("parity held")
"""


@pytest.mark.slow
@pytest.mark.processes
def test_triton_under_its_interpreter() -> None:
    interpreted(TRITON_CASES)
