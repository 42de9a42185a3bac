"""Accelerated blocks under everything that autograd lets a user do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import upstream_standins as up
from comparison import accelerated, assert_all_fast, assert_near, assert_trains_alike, statistics, tiny
from tiny_networks import gradients, image, maps, relative_l2
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from hrnet_fast.training import accelerate, explain

X = {"dtype": torch.float64}
MEMORY = pytest.mark.parametrize("memory", ["lean", "min"])


def loss_of(output: Any) -> Tensor:
    terms = [(o * torch.linspace(-1.0, 2.0, o.numel(), **X).view_as(o)).mean() for o in maps(output)]
    return torch.stack(terms).sum()


def both(plain: nn.Module, step: Callable[[nn.Module], Any], memory: str = "lean") -> tuple[Any, Any]:
    """What `step` returns for the accelerated and for the plain network, which it must leave alike."""
    fast = accelerated(plain, memory=memory)
    results = step(fast), step(plain)
    assert_near(gradients(fast), gradients(plain))
    assert_near(statistics(fast), statistics(plain))
    return results


FROZEN: dict[str, Callable[[str, Any], bool]] = {
    "stem": lambda name, p: name.startswith(("conv", "bn")),
    "stem and first stages": lambda name, p: name.startswith(("conv", "bn", "layer1", "transition1", "stage2")),
    "last stage": lambda name, p: name.startswith("stage4"),
    "norms": lambda name, p: p.dim() == 1,
    "convolutions": lambda name, p: p.dim() == 4,
    "some": lambda name, p: hash(name[-12:]) % 2 == 0,
    "all": lambda name, p: True,
}


@pytest.mark.slow
@MEMORY
@pytest.mark.parametrize("part", FROZEN)
def test_frozen_parts(part: str, memory: str) -> None:
    plain = tiny("v2").double()
    for name, p in plain.named_parameters():
        p.requires_grad_(not FROZEN[part](name, p))
    fast = accelerated(plain, memory=memory)
    assert_trains_alike(fast, plain)  # the input's gradient too
    trained = [name for name, p in fast.named_parameters() if p.grad is not None]
    assert trained == [name for name, p in plain.named_parameters() if p.requires_grad]

    def step(model: nn.Module) -> None:
        model.zero_grad()
        output = loss_of(model(image(64, 64, batch=2, **X)))
        assert output.requires_grad == (part != "all")
        if output.requires_grad:
            output.backward()

    both(plain, step, memory)


@MEMORY
def test_accumulation_and_retained_graphs(memory: str) -> None:
    def step(model: nn.Module) -> None:
        model.train()
        for seed in (1, 2):
            torch.manual_seed(seed)
            loss_of(model(torch.randn(2, 3, 64, 64, **X))).backward()
        loss = loss_of(model(image(64, 64, batch=2, **X)))
        loss.backward(retain_graph=True)
        loss.backward(retain_graph=True)
        (64.0 * loss).backward()  # as a scaler of losses does
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    both(tiny("v1").double(), step, memory)


@pytest.mark.slow
@MEMORY
def test_partial_gradients_then_all(memory: str) -> None:
    def step(model: Any) -> list[Tensor]:
        model.train()
        wanted = [model.stage3[0].branches[0][0].conv1.weight, model.stage2[0].fuse_layers[0][1][1].bias]
        loss = loss_of(model(image(64, 64, batch=2, **X)))
        found = torch.autograd.grad(loss, wanted, retain_graph=True)
        loss.backward()
        return list(found)

    for a, e in zip(*both(tiny("v1").double(), step, memory), strict=True):
        assert relative_l2(a, e) <= 1e-10


@MEMORY
def test_weights_that_move_between_two_passes_are_an_error(memory: str) -> None:
    """Not even what an earlier, partial pass computed again may serve a later one."""
    fast = accelerated(tiny("v1").double(), memory=memory).train()
    features = fast.layer1(torch.randn(2, 8, 8, 8, **X))
    out = fast.transition1[0](features)
    torch.autograd.grad(loss_of(out), list(fast.transition1[0].parameters()), retain_graph=True)
    with torch.no_grad():
        fast.layer1[0].conv2.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_of(out).backward()


def test_second_order_raises() -> None:
    model = accelerated(tiny("v1").double()).train()
    x = image(64, 64, batch=2, **X).requires_grad_()
    (first,) = torch.autograd.grad(loss_of(model(x)), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


@MEMORY
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("regions", ["stages", "layers"])
def test_checkpointed_regions(regions: str, reentrant: bool, memory: str) -> None:
    """Regions whose inputs are chains of other regions, too."""
    names = ["stage2", "stage3"] if regions == "stages" else ["layer1", "transition1.0", "transition1.1"]

    def step(model: nn.Module) -> None:
        model.train()
        for name in names:
            part = model.get_submodule(name)
            own = part.forward

            def call(given: Any, own: Any = own) -> Any:
                if isinstance(given, Tensor):
                    return checkpoint(own, given, use_reentrant=reentrant)
                return list(checkpoint(lambda *xs: tuple(own(list(xs))), *given, use_reentrant=reentrant))

            part.forward = call  # type: ignore[method-assign]
        loss_of(model(image(64, 64, batch=2, **X).requires_grad_())).backward()
        for name in names:
            del model.get_submodule(name).forward

    both(tiny("v1").double(), step, memory)


@MEMORY
def test_saved_tensors_may_travel(memory: str) -> None:
    def step(model: nn.Module) -> None:
        model.train()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy().copy(), torch.from_numpy):
            loss = loss_of(model(image(64, 64, batch=2, **X)))
        loss.backward()

    plain = tiny("v1").double()
    fast = accelerated(plain, memory=memory)
    step(fast)
    plain.train()
    loss_of(plain(image(64, 64, batch=2, **X))).backward()
    assert_near(gradients(fast), gradients(plain))


def change_added(y: Tensor) -> Tensor:
    y += 1.0
    return y


def change_scaled_without_history(y: Tensor) -> Tensor:
    with torch.no_grad():
        y.mul_(2.0)
    return y


def change_part(y: Tensor) -> Tensor:
    y[:, 0] = 0.5
    return y


@MEMORY
@pytest.mark.parametrize("change", [change_added, change_scaled_without_history, change_part, Tensor.detach])
def test_features_changed_by_the_user(change: Callable[[Tensor], Tensor], memory: str) -> None:
    """Right gradients, or torch's error: what a block made is not what the next one was given."""
    plain = tiny("v1", num_blocks=2).double().train()
    fast = accelerated(plain, memory=memory)
    given = torch.randn(2, 8, 8, 8, **X)

    def step(model: Any) -> None:
        loss_of(model.transition1[0](change(model.layer1(given)))).backward()

    step(fast)
    oracle = accelerated(plain)  # of other blocks, without anything changed in place
    x = oracle.layer1(given)
    x = {
        change_added: lambda: x + 1.0,
        change_scaled_without_history: lambda: x + x.detach(),
        change_part: lambda: torch.cat([torch.full_like(x[:, :1], 0.5), x[:, 1:]], 1),
        Tensor.detach: x.detach,
    }[change]()
    loss_of(plain.transition1[0](x)).backward()
    expected = gradients(oracle) | gradients(plain)
    assert_near(gradients(fast), expected)


@MEMORY
def test_feature_changed_after_it_was_used(memory: str) -> None:
    plain = tiny("v1").double().train()
    fast = accelerated(plain, memory=memory)
    given = torch.randn(2, 8, 8, 8, **X)
    middle = fast.layer1(given)
    out = fast.transition1[0](middle)
    middle += 1.0
    loss_of(out).backward()
    loss_of(plain.transition1[0](plain.layer1(given))).backward()
    assert_near(gradients(fast), gradients(plain))


def test_input_changed_after_it_was_used_is_an_error() -> None:
    fast = accelerated(tiny("v1").double()).train()
    given = torch.randn(2, 8, 8, 8, **X)
    out = fast.layer1(given)
    given += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_of(out).backward()


@pytest.mark.slow
@MEMORY
def test_shared_units_and_parameters(memory: str) -> None:
    plain = up.net(modules=2)
    branch = plain.stage2[0].branches[0]
    branch[1] = branch[0]  # one unit twice in a row
    plain.stage2[1].branches[1] = plain.stage2[0].branches[1]  # one branch in two modules
    plain.stage2[1].branches[2][0].conv1.weight = plain.stage2[0].branches[2][1].conv2.weight
    relu = nn.ReLU(inplace=True)
    chain = plain.transition1[2]
    plain.transition1[2] = nn.Sequential(*chain[0][:2], relu, *chain[1][:2], relu)  # one activation twice
    fast = accelerated(plain, memory=memory)
    assert_trains_alike(fast, plain)
    assert_all_fast(fast)
    for m in plain.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None
    fast = accelerated(plain, memory=memory)
    assert_trains_alike(fast, plain)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
def test_without_gradients(mode: Callable[[], Any], training: bool) -> None:
    def step(model: nn.Module) -> Tensor:
        with mode():
            out: Tensor = model.train(training)(image(64, 64, batch=2, **X))
        assert not out.requires_grad
        assert out.grad_fn is None
        return out.clone()

    a, e = both(tiny("v1").double(), step)
    assert relative_l2(a, e) <= 1e-10


@pytest.mark.slow
def test_parametrised_and_pruned_convolutions() -> None:
    plain = up.net()
    nn.utils.parametrizations.weight_norm(plain.stage2[0].branches[0][0].conv1)
    nn.utils.parametrizations.weight_norm(plain.stage2[0].fuse_layers[0][1][0])
    fast = accelerated(plain)
    assert_trains_alike(fast, plain)

    pruned, fast = up.net(), up.net()
    for model in (pruned, fast):
        prune.l1_unstructured(model.stage2[0].branches[0][0].conv1, "weight", amount=0.5)
    assert_trains_alike(accelerate(fast, impl="reference"), pruned)
    assert "weight of its Conv2d is parametrised or was replaced" in str(explain(fast))
