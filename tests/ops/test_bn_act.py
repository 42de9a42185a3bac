"""``bn_act``: every implementation against float64 ``batch_norm``, addition and ReLU, forward and backward."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from operator_cases import CPU, CUDA, LAYOUTS, ROUNDING, TRITON, device_of, distance
from torch import Tensor
from torch.nn.functional import batch_norm

from hrnet_fast.ops import bn_act

IMPLS = ["reference", CPU, TRITON, CUDA]
SIZES = [(17, 25), (65, 97), (8, 6), (1, 1), (5, 1)]
CHANNELS = 6


@dataclass
class Case:
    """One normalisation's input, and its running statistics, which a run moves."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    relu: bool
    training: bool

    def to(self, dtype: torch.dtype, wide: torch.dtype) -> Case:
        """The same values, exactly, each a leaf: maps in `dtype`, the rest in `wide`."""
        maps = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (self.x, self.residual)]
        rest = [None if t is None else t.detach().to(wide).requires_grad_() for t in (self.weight, self.bias)]
        buffers = [t.to(wide, copy=True) for t in (self.mean, self.variance)]
        return Case(*maps, *rest, *buffers, self.relu, self.training)  # type: ignore[arg-type]

    def leaves(self) -> list[Tensor]:
        return [t for t in (self.x, self.residual, self.weight, self.bias) if t is not None]


def make_case(
    size: tuple[int, int], dtype: torch.dtype, *, device: str = "cpu", channels_last: bool = False, batch: int = 3,
    residual: bool = True, relu: bool = True, training: bool = True, ratio: float = 1.0, affine: bool = True,
) -> Case:  # fmt: skip
    """``ratio`` is that of the mean to the standard deviation."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = [torch.randn(batch, CHANNELS, *size) + shift for shift in (ratio, 0.0)]
    maps = [m.to(device, dtype).contiguous(memory_format=layout) for m in maps]
    rest = [
        torch.rand(CHANNELS) + 0.5,
        torch.randn(CHANNELS),
        torch.randn(CHANNELS) + ratio,
        torch.rand(CHANNELS) + 0.5,
    ]
    rest = [t.to(device) for t in rest]
    weight, bias = (rest[0], rest[1]) if affine else (None, None)
    case = Case(maps[0], maps[1] if residual else None, weight, bias, rest[2], rest[3], relu, training)
    return case.to(dtype, torch.float64 if dtype == torch.float64 else torch.float32)


def run(case: Case, impl: str, relu: bool | None = None) -> Tensor:
    return bn_act(
        case.x, case.weight, case.bias, case.mean, case.variance, residual=case.residual,
        activation="relu" if (case.relu if relu is None else relu) else None, training=case.training, impl=impl,
    )  # fmt: skip


def eager(case: Case, relu: bool | None = None) -> Tensor:
    y = batch_norm(case.x, case.mean, case.variance, case.weight, case.bias, case.training, 0.1, 1e-5)
    y = y if case.residual is None else y + case.residual
    return y.relu() if (case.relu if relu is None else relu) else y


def within_budget(case: Case, impl: str, slack: float = 2.0) -> None:
    """Error against the oracle at most twice that of torch's own operators in the same dtype, plus one rounding."""
    dtype = case.x.dtype
    exact_case = case.to(torch.float64, torch.float64)
    torch_case = case.to(dtype, case.mean.dtype)
    out = run(case, impl)
    # The oracle takes the activation's decision from the result under test: at a value that rounding moved across
    # zero, neither side of the gradient is wrong.
    alive = (out.detach() > 0).double() if case.relu else torch.ones_like(out, dtype=torch.float64)
    grad = torch.randn_like(out)
    exact, own = eager(exact_case, relu=False), eager(torch_case, relu=False)

    def close(given: Tensor, wanted: Tensor, allowed: Tensor, what: str, slack: float = slack) -> None:
        # In float64 the oracle rounds like what it judges: a sum's roundings are neither's fault.
        roundings = 128 if given.dtype == torch.float64 else slack
        assert distance(given, wanted) <= 2 * distance(allowed, wanted) + roundings * ROUNDING[given.dtype], what

    assert (out.shape, out.dtype, out.stride()) == (case.x.shape, dtype, case.x.stride())
    close(out, exact.relu() if case.relu else exact, own.relu() if case.relu else own, "result")
    close(case.mean, exact_case.mean, torch_case.mean, "running mean", 2.0)
    close(case.variance, exact_case.variance, torch_case.variance, "running variance", 2.0)
    given = torch.autograd.grad(out, case.leaves(), grad)
    wanted = torch.autograd.grad(exact, exact_case.leaves(), grad.double() * alive)
    allowed = torch.autograd.grad(own, torch_case.leaves(), grad * alive.to(dtype))
    for k, (g, w, a, leaf) in enumerate(zip(given, wanted, allowed, case.leaves(), strict=True)):
        assert (g.dtype, g.shape) == (leaf.dtype, leaf.shape)
        close(g, w, a, f"gradient {k}")


def sizes_and_options() -> list[Any]:
    """All options at one size; at the others, everything and nothing: loops over pixels do not know the options."""
    params = []
    for size in SIZES:
        for chosen in itertools.product((True, False), repeat=3):
            if size == SIZES[0] or len(set(chosen)) == 1:
                names = zip(("residual", "relu", "training"), ("plain", "linear", "frozen"), chosen, strict=True)
                words = [yes if is_chosen else no for yes, no, is_chosen in names]
                params.append(pytest.param(size, *chosen, id="-".join([str(size), *words])))
    return params


@pytest.mark.parametrize(("dtype", "channels_last"), LAYOUTS)
@pytest.mark.parametrize(("size", "residual", "relu", "training"), sizes_and_options())
@pytest.mark.parametrize("impl", IMPLS)
def test_parity(
    impl: str,
    size: tuple[int, int],
    dtype: torch.dtype,
    channels_last: bool,
    residual: bool,
    relu: bool,
    training: bool,
) -> None:
    if impl == "triton" and dtype == torch.float64:
        pytest.skip("it has no float64")
    within_budget(
        make_case(
            size, dtype, device=device_of(impl), channels_last=channels_last, residual=residual, relu=relu,
            training=training,
        ),
        impl,
        4.0 if impl == "triton" else 2.0,  # its sums go in tiles; over few values the library's own error is luck
    )  # fmt: skip


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_mean_of_a_thousand_deviations(impl: str, dtype: torch.dtype, channels_last: bool) -> None:
    """The running statistics keep the budget; scale * x + shift may round once what is as large as the mean."""
    case = make_case((65, 97), dtype, device=device_of(impl), channels_last=channels_last, ratio=1e3)
    within_budget(case, impl, 1e3 if dtype == torch.float32 else 2)


@pytest.mark.parametrize("impl", IMPLS)
def test_without_parameters_or_with_one(impl: str) -> None:
    for weight in (True, False):
        for bias in (True, False):
            case = make_case((9, 7), torch.float32, device=device_of(impl))
            case.weight, case.bias = case.weight if weight else None, case.bias if bias else None
            within_budget(case, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_wide_and_narrow_parameters(impl: str) -> None:
    """Half maps with float32 parameters are the rule; a model that was cast whole has half parameters and buffers."""
    case = make_case((9, 7), torch.bfloat16, device=device_of(impl)).to(torch.bfloat16, torch.bfloat16)
    within_budget(case, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_batches_are_counted_and_averaged(impl: str) -> None:
    device = device_of(impl)
    norm = torch.nn.BatchNorm2d(CHANNELS, momentum=None, device=device)
    mean, variance = torch.zeros(CHANNELS, device=device), torch.ones(CHANNELS, device=device)
    count = torch.tensor(0, device=device)
    for _ in range(3):
        x = torch.randn(2, CHANNELS, 5, 4, device=device)
        expected = norm(x).relu()
        out = bn_act(x, None, None, mean, variance, momentum=None, num_batches_tracked=count, impl=impl)
        assert torch.allclose(out, expected, atol=1e-6)
    assert count.item() == norm.num_batches_tracked.item() == 3  # type: ignore[union-attr, operator]
    assert torch.allclose(mean, norm.running_mean, atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(variance, norm.running_var, atol=1e-6)  # type: ignore[arg-type]
    bn_act(x, None, None, mean, variance, num_batches_tracked=count, training=False, impl=impl)
    assert count.item() == 3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("impl", IMPLS)
def test_nan_and_infinity_go_where_torch_sends_them(impl: str, training: bool) -> None:
    case = make_case((8, 8), torch.float32, device=device_of(impl), training=training)
    with torch.no_grad():
        case.x[0, 0, 1, 1] = torch.nan
        case.x[0, 1, 2, 2] = torch.inf
        case.x[0, 2, 3, 3] = -torch.inf
        case.residual[1, 3, 4, 4] = torch.nan  # type: ignore[index]
        case.residual[1, 4, 5, 5] = -torch.inf  # type: ignore[index]
    other = case.to(torch.float32, torch.float32)
    out, expected = run(case, impl), eager(other)
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert torch.equal(case.mean.isfinite(), other.mean.isfinite())
    assert torch.equal(case.variance.isfinite(), other.variance.isfinite())
    grad = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, case.leaves(), grad), torch.autograd.grad(expected, other.leaves(), grad), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch(impl: str, training: bool, channels_last: bool) -> None:
    case = make_case(
        (8, 6), torch.float32, device=device_of(impl), channels_last=channels_last, batch=0, training=training
    )
    before = case.mean.clone(), case.variance.clone()
    out = run(case, impl)
    assert out.shape == (0, CHANNELS, 8, 6)
    grads = torch.autograd.grad(out.sum(), case.leaves())
    assert all(g.shape == leaf.shape and not g.any() for g, leaf in zip(grads, case.leaves(), strict=True))
    assert torch.equal(case.mean, before[0])
    assert torch.equal(case.variance, before[1])


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_views_and_mixed_layouts(impl: str) -> None:
    device = device_of(impl)
    x = torch.randn(2, 2 * CHANNELS, 20, 22, device=device)[:, ::2, 2:18, 3:19]
    residual = torch.randn(2, CHANNELS, 16, 16, device=device).to(memory_format=torch.channels_last)
    buffers = torch.rand(2, 2 * CHANNELS, device=device)[:, ::2]
    expected_buffers = buffers.clone()
    x.requires_grad_()
    out = bn_act(x, None, None, buffers[0], buffers[1], residual=residual, impl=impl)
    # With a weight, as CUDA cannot differentiate it without.
    y = batch_norm(x, expected_buffers[0], expected_buffers[1], torch.ones(CHANNELS, device=device), training=True)
    expected = (y + residual).relu()
    assert torch.allclose(out, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(buffers, expected_buffers, rtol=1e-5, atol=1e-6)
    for layout in (torch.channels_last, torch.contiguous_format):
        grad = torch.randn_like(out).contiguous(memory_format=layout)
        a, b = (torch.autograd.grad(o, x, grad, retain_graph=True)[0] for o in (out, expected))
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
