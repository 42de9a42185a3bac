"""What is done to a model between two calls counts at the second one: what was read of its layers is read anew."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import upstream_standins as up
from comparison import accelerated, assert_trains_alike
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from hrnet_fast.training import explain, restore
from hrnet_fast.training.accelerate import accelerate_blocks
from hrnet_fast.training.structure_cache import NAME, CachedStructure

UNIT = "stage2.0.branches.0.0"
FUSION = "stage2.0.fuse_layers.0.1"  # convolution, normalisation, upsampling


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


class Scaled(nn.Conv2d):
    """A convolution of its own kind."""

    def forward(self, input: Tensor) -> Tensor:
        return 3.0 * super().forward(input)


def at(path: str) -> Callable[[nn.Module], Any]:
    return lambda model: model.get_submodule(path)


unit, fused_conv, fused_norm = at(UNIT), at(f"{FUSION}.0"), at(f"{FUSION}.1")


def replaced(name: str, make: Callable[[Any], Any]) -> Callable[[nn.Module], None]:
    """Replace something of the unit by what is made of it."""

    def change(model: nn.Module) -> None:
        parent, _, own = f"{UNIT}.{name}".rpartition(".")
        setattr(model.get_submodule(parent), own, make(getattr(model.get_submodule(parent), own)))

    return change


def new_parameter(old: Tensor) -> nn.Parameter:
    return nn.Parameter(old.detach() * 1.5)


def other_norm(old: nn.BatchNorm2d) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(old.num_features, eps=0.1).double()
    return made.train(old.training)


def assign(model: nn.Module) -> None:
    state = {k: v * 1.25 if v.is_floating_point() else v + 7 for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def other_counters(model: nn.Module) -> None:
    """Equal values, but not the tensors that were there."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.num_batches_tracked = m.num_batches_tracked.clone()  # type: ignore[union-attr]


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "a parameter replaced": replaced("conv1.weight", new_parameter),
    "a parameter's data replaced": lambda m: setattr(unit(m).conv1.weight, "data", unit(m).conv1.weight.data * 2),
    "a parameter written to": lambda m: unit(m).conv1.weight.data.mul_(2),
    "weights assigned": assign,
    "equal counters": other_counters,
    "a buffer replaced": replaced("bn1.running_mean", torch.ones_like),
    "a bias": lambda m: setattr(unit(m).conv1, "bias", nn.Parameter(torch.ones_like(unit(m).bn1.weight))),
    "dilation": lambda m: vars(unit(m).conv1).update(dilation=(2, 2), padding=(2, 2)),
    "eps": replaced("bn1.eps", lambda e: 0.25),
    "momentum": replaced("bn2.momentum", lambda m: 0.5),
    "cumulative momentum": replaced("bn2.momentum", lambda m: None),
    "a frozen layer": lambda m: unit(m).bn1.eval(),
    "no tracking": lambda m: setattr(unit(m).bn1, "track_running_stats", False),
    "another layer": replaced("bn2", other_norm),
    "another activation": replaced("relu", lambda r: nn.LeakyReLU(0.2)),
    "another class of convolution": replaced("conv1.__class__", lambda c: Scaled),
    "a hook": lambda m: unit(m).conv1.register_forward_hook(lambda module, args, out: 2.0 * out),
    "a parametrization": lambda m: parametrize.register_parametrization(unit(m).conv2, "weight", Doubled()),
    "a shortcut": replaced("downsample", lambda d: nn.Sequential(copy.deepcopy(d_conv()), nn.BatchNorm2d(4).double())),
    "another unit": lambda m: m.get_submodule("stage2.0.branches.0").append(up.BasicBlock(4, 4).double().train()),
    "a unit's forward": lambda m: setattr(unit(m), "forward", lambda x: 2.0 * x),
    "a fusion's weight": lambda m: setattr(fused_conv(m), "weight", new_parameter(fused_conv(m).weight)),
    "a fusion's eps": lambda m: setattr(fused_norm(m), "eps", 0.25),
    "a frozen layer of a fusion": lambda m: m.get_submodule("stage2.0.fuse_layers").eval(),
    "a hook in a fusion": lambda m: fused_norm(m).register_forward_hook(lambda module, args, out: 2.0 * out),
    "a fusion's layer removed": lambda m: m.get_submodule("stage2.0.fuse_layers.1.0.0").__delitem__(1),
}


def d_conv() -> nn.Conv2d:
    torch.manual_seed(5)
    return nn.Conv2d(4, 4, 1, bias=False).double()


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_counts(change: str) -> None:
    plain = up.net(modules=1).train()
    fast = accelerated(plain).train()
    for _ in range(2):  # what was read at the first one serves the second
        assert_trains_alike(fast, plain)
    for model in (plain, fast):
        torch.manual_seed(2)
        CHANGES[change](model)
    for _ in range(2):
        assert_trains_alike(fast, plain)


def test_a_class_changed_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = up.net(modules=1).train()
    fast = accelerated(plain).train()
    assert_trains_alike(fast, plain)
    original = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, w, b: 2.0 * original(self, x, w, b))
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: 2.0 * original(self, x, self.weight, self.bias))
    assert_trains_alike(fast, plain)


def test_a_global_hook_counts() -> None:
    plain = up.net(modules=1).train()
    fast = accelerated(plain).train()
    assert_trains_alike(fast, plain)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    try:
        assert_trains_alike(fast, plain)
        assert seen.count("BatchNorm2d") == 2 * sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    finally:
        handle.remove()
    assert_trains_alike(fast, plain)


def test_nothing_is_found_out_twice_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = accelerated(up.net(modules=1)).train()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for _ in range(2):
        fast(x)
    asked: list[object] = []
    for name in ("unit", "conv_norm", "conv_norm_relu"):
        monkeypatch.setattr(f"hrnet_fast.training.unsupported.{name}", lambda *given: asked.append(given))
    monkeypatch.setattr("hrnet_fast.training.fused_modules.unit_layers", lambda *given: asked.append(given))
    fast(x)
    assert asked == []


def replica(model: nn.Module, scale: float) -> nn.Module:
    """As ``nn.DataParallel`` makes one: modules share their attributes' values, parameters are other tensors."""
    made = {m: m._replicate_for_data_parallel() for m in model.modules()}  # type: ignore[no-untyped-call]
    for module, copied in made.items():
        copied._modules = {name: child and made[child] for name, child in module._modules.items()}
        copied._parameters = {k: None if p is None else p * scale for k, p in module._parameters.items()}
        copied._buffers = {k: None if b is None else b.clone() for k, b in module._buffers.items()}
    return made[model]


def test_replicas_compute_with_their_own_weights() -> None:
    plain = up.net(modules=1).eval()
    fast = accelerated(plain).eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        fast(x)
        for a, e in zip(tree_leaves(replica(fast, 1.1)(x)), tree_leaves(replica(plain, 1.1)(x)), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


def test_a_scripted_layer_stays_as_it_is() -> None:
    row = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), torch.jit.script(nn.Sigmoid())).eval()
    x = torch.randn(1, 3, 8, 8)
    wanted = row(x)
    accelerate_blocks(row, "reference", "lean")
    for _ in range(2):
        torch.testing.assert_close(row(x), wanted)


def test_what_was_found_stays_with_its_module() -> None:
    fast = accelerated(up.net(modules=1)).train()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fast(x)
    assert any(isinstance(vars(m).get(NAME), CachedStructure) for m in fast.modules())
    other = copy.deepcopy(fast)
    assert not any(NAME in vars(m) for m in other.modules())
    assert explain(other)
    assert not any(NAME in vars(m) for m in restore(fast).modules())


@pytest.mark.slow
@pytest.mark.parametrize("change", ["nothing", "to meta", "half"])
def test_weights_that_nobody_holds_are_freed(change: str) -> None:
    """By counts of references alone: ``del model`` and whatever replaces weights have their effect at once."""

    def left_of(models: list[nn.Module]) -> int:
        with torch.no_grad():
            models[0](torch.randn(1, 3, 64, 64, dtype=torch.float64))
        tensors = [weakref.ref(t) for t in (*models[0].parameters(), *models[0].buffers())]
        if change == "nothing":
            models.clear()
        else:
            models[0].to("meta") if change == "to meta" else models[0].half()
        return sum(t() is not None for t in tensors)

    plain = up.net(modules=1).eval()
    made = [accelerated(plain).eval()], [copy.deepcopy(plain)]
    gc.collect()
    gc.disable()
    try:
        fast, expected = map(left_of, made)
    finally:
        gc.enable()
    assert fast == expected
