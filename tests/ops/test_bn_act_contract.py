"""``bn_act`` in PyTorch: registration, compilation, tensors saved for backward, refused arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_cases import EVERY, FORMS, compiler_for, device_of
from test_bn_act import CHANNELS, IMPLS, make_case, run
from torch import Tensor

from hrnet_fast import ImplementationError, InputError
from hrnet_fast.implementations import describe
from hrnet_fast.ops import bn_act
from hrnet_fast.ops.bn_act_primitives import bn_act_primitives, load_bn_act

OPS = torch.ops.hrnet_fast


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


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
def test_opcheck(impl: str, channels_last: bool) -> None:
    """Layouts and results depend on the implementation; derivatives and their capture are registered once for all."""
    case = make_case((5, 7), torch.float32, device=device_of(impl), channels_last=channels_last)
    x, weight, bias = case.x.detach(), case.weight.detach(), case.bias.detach()  # type: ignore[union-attr]
    every = FORMS if impl == "cpu" or channels_last else EVERY
    buffers = (case.mean, case.variance)
    torch.library.opcheck(OPS.bn_batch_affine.default, (x, weight, bias, *buffers, 0.1, 1e-5, impl), test_utils=every)
    torch.library.opcheck(OPS.bn_batch_affine.default, (x, None, None, None, None, 0.1, 1e-5, impl), test_utils=FORMS)
    torch.library.opcheck(OPS.bn_running_affine.default, (x, weight, None, *buffers, 1e-5, impl), test_utils=every)
    affine = OPS.bn_batch_affine.default(x, weight, bias, *buffers, 0.1, 1e-5, impl)
    for residual in (case.residual, None):
        for relu in (True, False):
            given = (case.x, case.weight, case.bias, affine, residual, relu, True, impl)
            torch.library.opcheck(OPS.bn_act.default, given, test_utils=every)
    given = (case.x, None, case.bias, affine, None, True, False, impl)
    torch.library.opcheck(OPS.bn_act.default, given, test_utils=every)
    out = OPS.bn_act.default(x, weight, bias, affine, case.residual, True, True, impl).detach()
    grad = torch.randn_like(x)
    for kept in (out, None):
        for wanted in ((True, True, kept is not None), (True, False, False), (False, True, False)):
            for batch in (True, False):
                given = (grad, x, affine, kept, True, batch, *wanted, impl)
                torch.library.opcheck(OPS.bn_act_backward.default, given, test_utils=FORMS)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize(
    ("residual", "training", "backend"),
    [(True, True, "inductor"), (False, True, "aot_eager"), (True, False, "aot_eager")],
)
@pytest.mark.parametrize("impl", IMPLS)
def test_compiled_whole(impl: str, residual: bool, training: bool, backend: str) -> None:
    """To Inductor the operator is opaque: its options change what is captured, not the code that is generated."""
    backend = backend if backend == "aot_eager" else compiler_for(impl)
    case = make_case((9, 6), torch.float32, device=device_of(impl), channels_last=True, residual=residual,
                     training=training)  # fmt: skip
    other = case.to(torch.float32, torch.float32)

    def step(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, extra: Tensor | None) -> Tensor:
        return bn_act(x, weight, bias, mean, variance, residual=extra, training=training, impl=impl) * 2

    def given(c: Any) -> tuple[Any, ...]:
        return c.x, c.weight, c.bias, c.mean, c.variance, c.residual

    eager, compiled = step(*given(case)), torch.compile(step, fullgraph=True, backend=backend)(*given(other))
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
    reference = load_bn_act("reference")
    assert bn_act_primitives("reference", X) is reference
    assert bn_act_primitives("auto", X.double()) is (load_bn_act("cpu") if describe("cpu").usable else reference)


def test_one_process_has_nothing_to_join() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(bn_act(x, sync=True), bn_act(x))
