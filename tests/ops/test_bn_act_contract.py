"""``bn_act`` as torch sees it: registration, compilation, what is kept for backward, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_bn_act import CHANNELS, IMPLS, device_of, make_case, run
from torch import Tensor

from hrnet_fast import ImplementationError, InputError
from hrnet_fast.ops import bn_act
from hrnet_fast.ops.bn_act import _batch_affine, _bn_act, _bn_act_backward, _running_affine, bn_act_primitives


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_gradcheck(relu: bool, residual: bool, training: bool) -> None:
    case = make_case((3, 4), torch.float64, residual=residual, relu=relu, training=training)

    def call(*leaves: Tensor) -> Tensor:
        # Copies of the running statistics: every call must see the same ones.
        return bn_act(
            leaves[0], leaves[-2], leaves[-1], case.mean.clone(), case.variance.clone(),
            residual=leaves[1] if residual else None, activation="relu" if relu else None, training=training,
        )  # fmt: skip

    assert torch.autograd.gradcheck(call, case.leaves())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
def test_opcheck(impl: str, channels_last: bool) -> None:
    case = make_case((5, 7), torch.float32, device=device_of(impl), channels_last=channels_last)
    x, weight, bias = case.x.detach(), case.weight.detach(), case.bias.detach()  # type: ignore[union-attr]
    buffers = (case.mean, case.variance)
    torch.library.opcheck(_batch_affine, (x, weight, bias, *buffers, 0.1, 1e-5, impl))
    torch.library.opcheck(_batch_affine, (x, None, None, None, None, 0.1, 1e-5, impl))
    torch.library.opcheck(_running_affine, (x, weight, None, *buffers, 1e-5, impl))
    affine = _batch_affine(x, weight, bias, *buffers, 0.1, 1e-5, impl)
    for residual in (case.residual, None):
        for relu in (True, False):
            torch.library.opcheck(_bn_act, (case.x, case.weight, case.bias, affine, residual, relu, True, impl))
    torch.library.opcheck(_bn_act, (case.x, None, case.bias, affine, None, True, False, impl))
    out, grad = _bn_act(x, weight, bias, affine, case.residual, True, True, impl).detach(), torch.randn_like(x)
    for given in (out, None):
        for wanted in ((True, True, given is not None), (True, False, False), (False, True, False)):
            for batch in (True, False):
                torch.library.opcheck(_bn_act_backward, (grad, x, affine, given, True, batch, *wanted, impl))


@pytest.mark.parametrize(("residual", "training"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("impl", IMPLS)
def test_compiled_whole(impl: str, residual: bool, training: bool) -> None:
    case = make_case((9, 6), torch.float32, device=device_of(impl), channels_last=True, residual=residual,
                     training=training)  # fmt: skip
    other = case.to(torch.float32, torch.float32)

    def step(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, extra: Tensor | None) -> Tensor:
        return bn_act(x, weight, bias, mean, variance, residual=extra, training=training, impl=impl) * 2

    def given(c: Any) -> tuple[Any, ...]:
        return c.x, c.weight, c.bias, c.mean, c.variance, c.residual

    eager, compiled = step(*given(case)), torch.compile(step, fullgraph=True)(*given(other))
    assert torch.equal(eager, compiled)
    assert eager.stride() == compiled.stride()
    assert torch.equal(case.mean, other.mean)
    assert torch.equal(case.variance, other.variance)
    for a, b in zip(
        torch.autograd.grad(eager.square().sum(), case.leaves()),
        torch.autograd.grad(compiled.square().sum(), other.leaves()),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_under_autocast(impl: str) -> None:
    device = device_of(impl)
    conv = torch.nn.Conv2d(3, CHANNELS, 3, bias=False, device=device)
    norm = torch.nn.BatchNorm2d(CHANNELS, device=device)
    with torch.autocast(device, torch.bfloat16):
        x = conv(torch.randn(2, 3, 9, 8, device=device))
        out = bn_act(x, norm.weight, norm.bias, impl=impl)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.float().square().sum(), [conv.weight, norm.weight, norm.bias])
    assert all(g.dtype == torch.float32 for g in grads)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_keeps_the_input_and_statistics(impl: str, relu: bool, residual: bool) -> None:
    """The result as well only where it alone tells its sign: behind a residual."""
    case = make_case((32, 32), torch.bfloat16, device=device_of(impl), residual=residual, relu=relu)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        run(case, impl)
    maps = 2 if residual and relu else 1
    assert sum(saved) == maps * case.x.nbytes + 4 * CHANNELS * 4


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("impl", IMPLS)
def test_only_wanted_gradients_and_the_same_again(impl: str, training: bool) -> None:
    for residual in (True, False):
        full = make_case((6, 6), torch.float32, device=device_of(impl), residual=residual, training=training)
        start = full.to(torch.float32, torch.float32)
        grad = torch.randn_like(full.x)
        wanted = torch.autograd.grad(run(full, impl), full.leaves(), grad)
        for k, expected in enumerate(wanted):
            case = start.to(torch.float32, torch.float32)
            for i, leaf in enumerate(case.leaves()):
                leaf.requires_grad_(i == k)
            (got,) = torch.autograd.grad(run(case, impl), [case.leaves()[k]], grad)
            assert torch.equal(got, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("impl", IMPLS)
def test_no_second_order(impl: str, training: bool) -> None:
    case = make_case((6, 6), torch.float32, device=device_of(impl), training=training)
    (grad,) = torch.autograd.grad(run(case, impl).square().sum(), [case.x], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), [case.x])


X, C = torch.ones(2, 3, 4, 4), torch.ones(3)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (torch.ones(3, 4, 4), {}, "x has shape"),
        (X.to(torch.int32), {}, "float16 are accepted"),
        (X, {"activation": "gelu"}, "activation"),
        (X, {"weight": torch.ones(4)}, r"weight has shape \(4,\)"),
        (X, {"bias": torch.ones(3, 1)}, "bias has shape"),
        (X, {"weight": C.to("meta")}, "weight is .* on meta"),
        (X, {"running_mean": C.long(), "running_var": C}, "running_mean is torch.int64"),
        (X, {"running_mean": C}, "both or neither"),
        (X, {"training": False}, "give both"),
        (X, {"residual": torch.ones(2, 3, 4, 5)}, "residual has shape"),
        (X, {"residual": X.double()}, "residual is torch.float64"),
        (X[:1, :, :1, :1], {}, "more than 1 value per channel"),
        (X, {"running_mean": C, "running_var": C, "momentum": None}, "num_batches_tracked"),
        (X, {"process_group": "world"}, "sync=False"),
    ],
)
def test_what_cannot_be_normalised_is_refused(x: Tensor, options: dict[str, Any], words: str) -> None:
    count = torch.tensor(0)
    if options.get("momentum", 0.1) is not None:
        options = {**options, "num_batches_tracked": count}
    with pytest.raises(InputError, match=words):
        bn_act(x, **options)
    assert count.item() == 0


def test_named_implementations_never_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "triton"):
        with pytest.raises(ImplementationError, match=f"{name}.*cannot run on cpu"):
            bn_act(X, impl=name)
    monkeypatch.setenv("HRNET_FAST_IMPL", "triton")
    with pytest.raises(ImplementationError, match="HRNET_FAST_IMPL=triton"):
        bn_act(X)


def test_pieces_come_from_one_place() -> None:
    assert bn_act_primitives("reference", X).__name__ == "hrnet_fast.reference.bn_act"
    assert bn_act_primitives("auto", X.double()).__name__ in (
        "hrnet_fast.reference.bn_act",
        "hrnet_fast.ops.bn_act_cpu",
    )


def test_one_process_has_nothing_to_join() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(bn_act(x, sync=True), bn_act(x))
