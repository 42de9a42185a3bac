"""``bn_act`` and ``fuse_sum`` as autograd nodes in C++: bit for bit the registered operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_cases import CPU
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hrnet_fast.ops import bn_act, fuse_sum

pytestmark = pytest.mark.parametrize("impl", [CPU])
Call = Callable[..., Tensor]


class Watched(TorchDispatchMode):
    """Notes the operators of this package that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "hrnet_fast":
            self.seen.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def leaf(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.randn(shape).to(dtype).contiguous(memory_format=layout).requires_grad_()


def normalisation(dtype: torch.dtype, residual: bool, training: bool, relu: bool) -> tuple[Call, list[Tensor]]:
    leaves = [leaf(2, 6, 5, 7, dtype=dtype, last=True), leaf(6), leaf(6, dtype=dtype)]
    leaves += [leaf(2, 6, 5, 7, dtype=dtype)] * residual
    mean, variance = torch.randn(6), torch.rand(6) + 0.5

    def call(x: Tensor, weight: Tensor, bias: Tensor, extra: Tensor | None = None, impl: str = "auto") -> Tensor:
        return bn_act(
            x, weight, bias, mean.clone(), variance.clone(), residual=extra, training=training,
            activation="relu" if relu else None, impl=impl,
        )  # fmt: skip

    return call, leaves


def fusion(dtype: torch.dtype, affine: bool, relu: bool) -> tuple[Call, list[Tensor]]:
    xs = [leaf(2, 6, *size, dtype=dtype, last=True) for size in ((8, 6), (4, 3), (8, 6))]

    def call(*given: Tensor, impl: str = "auto") -> Tensor:
        scales, shifts = ([None, given[3], None], [None, given[4], None]) if affine else (None, None)
        return fuse_sum(given[:3], scales, shifts, activation="relu" if relu else None, impl=impl)

    return call, [*xs, *([leaf(6), leaf(6)] * affine)]


CASES = {
    "all": lambda: normalisation(torch.float32, True, True, True),
    "half": lambda: normalisation(torch.bfloat16, False, True, True),
    "linear": lambda: normalisation(torch.float32, True, True, False),
    "frozen": lambda: normalisation(torch.float64, False, False, True),
    "sum": lambda: fusion(torch.float32, True, True),
    "plain sum": lambda: fusion(torch.bfloat16, False, False),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_registered_operators(case: str, impl: str) -> None:
    call, leaves = CASES[case]()
    name = "FuseSum" if "sum" in case else "BnAct"
    out = call(*leaves, impl=impl)
    assert f"{name}Function" in out.grad_fn.name()  # type: ignore[union-attr]
    with Watched() as mode:
        registered = call(*leaves, impl=impl)
        assert mode.seen & {"bn_act", "fuse_sum"}
    assert torch.equal(out, registered)
    assert out.stride() == registered.stride()
    grad = torch.randn_like(out).contiguous()
    found, wanted = (torch.autograd.grad(o, leaves, grad, retain_graph=True) for o in (out, registered))
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)
        assert (a.dtype, a.stride()) == (b.dtype, b.stride())
    for k, expected in enumerate(wanted):  # only what is wanted is computed
        assert torch.equal(torch.autograd.grad(out, leaves[k], grad, retain_graph=True)[0], expected)
    again = checkpoint(call, *leaves, use_reentrant=False, impl=impl)
    assert all(map(torch.equal, torch.autograd.grad(again, leaves, grad), wanted))
    with torch.no_grad():
        assert torch.equal(call(*leaves, impl=impl), out)


@pytest.mark.parametrize("case", ["half", "sum"])
def test_others_compute_with_the_registered_operators(case: str, impl: str) -> None:
    call, leaves = CASES[case]()

    class Own(Tensor):
        """A subclass, which results keep."""

    assert type(call(leaves[0].detach().as_subclass(Own), *leaves[1:], impl=impl)) is Own
    traced = make_fx(lambda *given: call(*given, impl=impl))(*leaves)
    assert f"hrnet_fast.{'fuse_sum' if case == 'sum' else 'bn_act'}" in traced.code


def test_fake_tensors(impl: str) -> None:
    with FakeTensorMode():
        x, c = torch.empty(2, 6, 4, 4, requires_grad=True), torch.ones(6)
        out = fuse_sum([bn_act(x, c, c, c.clone(), c.clone(), impl=impl), x], impl=impl)
        (grad,) = torch.autograd.grad(out.sum(), x)
    assert type(out) is type(grad)
    assert type(out).__name__ == "FakeTensor"


def test_running_statistics_show_that_they_moved(impl: str) -> None:
    x, mean, variance = torch.randn(2, 3, 4, 4), torch.zeros(3), torch.ones(3)
    bn_act(x, None, None, mean, variance, impl=impl)
    assert min(mean._version, variance._version) > 0
    versions = mean._version, variance._version
    bn_act(x, None, None, mean, variance, training=False, impl=impl)
    assert (mean._version, variance._version) == versions


def test_an_input_changed_in_place_is_an_error(impl: str) -> None:
    x = leaf(2, 3, 4, 4)
    scale, shift = torch.ones(3, requires_grad=True), torch.zeros(3)
    for call in (lambda m: bn_act(m, impl=impl), lambda m: fuse_sum([m], [scale], [shift], impl=impl)):
        middle = x * 1.0
        out = call(middle)
        middle.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_second_order_is_an_error(impl: str) -> None:
    for case in ("all", "frozen", "sum"):
        call, leaves = CASES[case]()
        grads = torch.autograd.grad(call(*leaves, impl=impl).sum(), leaves[:2], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            torch.autograd.grad(sum(g.sum() for g in grads), leaves[0])  # type: ignore[arg-type]


def test_batched_gradients(impl: str) -> None:
    call, leaves = CASES["all"]()
    out = call(*leaves, impl=impl)
    grads = torch.randn(3, *out.shape, dtype=out.dtype)
    found = torch.autograd.grad(out, leaves, grads, is_grads_batched=True, retain_graph=True)
    for k, grad in enumerate(grads):
        for a, b in zip(found, torch.autograd.grad(out, leaves, grad, retain_graph=True), strict=True):
            torch.testing.assert_close(a[k], b)


def test_a_traced_size_stays_symbolic(impl: str) -> None:
    traced = make_fx(lambda x: fuse_sum([x, x[:, :, ::2, ::2]], impl=impl), tracing_mode="symbolic")(leaf(1, 2, 8, 8))
    assert traced(torch.randn(1, 2, 16, 12)).shape == (1, 2, 16, 12)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_shapes_without_data_need_no_device(name: str, impl: str) -> None:
    x, c = torch.empty(2, 3, 4, 4, device="meta"), torch.empty(3, device="meta")
    assert bn_act(x, c, c, c.clone(), c.clone(), impl=name).shape == x.shape
    assert fuse_sum([x, x], impl=name).shape == x.shape
