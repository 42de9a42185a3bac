"""Blocks that look like an HRNet's and are none, or have something added: on the plain path alone, and named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import upstream_standins as up
from comparison import accelerated, assert_evaluates_alike, assert_trains_alike, reasons, tiny
from tiny_networks import enliven, image
from torch import Tensor, nn
from torch.nn import functional as F

from hrnet_fast.reference.blocks import BasicBlock
from hrnet_fast.training import accelerate, explain
from hrnet_fast.training.accelerate import accelerate_blocks
from hrnet_fast.training.fused_fusion import FusedModularizedBlock


class PreActivation(up.BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu(self.bn1(x)) if self.bn1.num_features == x.shape[1] else x)
        return self.conv2(self.relu(self.bn2(out))) + x


class Scaled(up.BasicBlock):
    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(x + 0.5 * out)


class Dropping(up.BasicBlock):
    """Differs in training only, and no module of it tells."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(x + F.dropout(out, 0.5, self.training))


class LayerScaled(up.BasicBlock):
    """Only one that has the parameter differs: they do not share a verdict."""

    gamma: nn.Parameter | None

    def __init__(self, inplanes: int, planes: int) -> None:
        super().__init__(inplanes, planes)
        self.register_parameter("gamma", nn.Parameter(torch.ones(planes, 1, 1)) if planes == 8 else None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(x + (out if self.gamma is None else out * self.gamma))


class Multiplying(up.HighResolutionModule):
    def forward(self, x: list[Tensor]) -> list[Tensor]:
        x = [branch(one) for branch, one in zip(self.branches, x, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse_layers):
            terms = [x[j] if i == j else row[j](x[j]) for j in range(self.num_branches)]  # type: ignore[index]
            fused.append(torch.stack(terms).prod(0).relu())
        return fused


@pytest.mark.parametrize("block", [PreActivation, Scaled, LayerScaled])
def test_lookalike_units_are_refused(block: Any) -> None:
    plain = up.net(block=block)
    fast = accelerated(plain)
    told = reasons(fast) or {b.name: b.reason for b in explain(fast).blocks if b.reason}
    assert "computes something else than its structure says" in str(told)
    x = image(32, 32, batch=2, dtype=torch.float64)
    assert_trains_alike(fast, plain, x)
    assert_evaluates_alike(fast, plain, x)


def test_chance_in_training_is_kept() -> None:
    plain = up.net(block=Dropping)
    fast = accelerated(plain)
    assert "in training" in str(reasons(fast))
    x = image(32, 32, batch=2, dtype=torch.float64)
    results = []
    for model in (plain.train(), fast.train()):
        torch.manual_seed(5)
        results.append(model(x))
    for a, e in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def test_multiplying_fusion_is_refused() -> None:
    plain = up.net(Multiplying)
    fast = accelerated(plain)
    assert set(reasons(fast)) == {"stage2.0", "stage2.1"}
    assert not any(isinstance(m, FusedModularizedBlock) for m in fast.modules())
    assert_trains_alike(fast, plain, image(32, 32, batch=2, dtype=torch.float64))
    own = tiny("v1", fusion="product")
    assert "multiplies" in str(reasons(accelerated(own)))


class OtherConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Squeeze(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


def _replace_conv(unit: Any) -> None:
    unit.conv1 = enliven(OtherConv(8, 8, 3, padding=1, bias=False), 3).double()


def _group_norm(unit: Any) -> None:
    unit.bn1 = nn.GroupNorm(2, 8).double()


def _circular(unit: Any) -> None:
    unit.conv2.padding_mode = "circular"
    unit.conv2._reversed_padding_repeated_twice = [1, 1, 1, 1]


def _activation(unit: Any) -> None:
    unit.relu = nn.LeakyReLU(0.1)


def _added(name: str) -> Callable[[Any], None]:
    return lambda unit: unit.add_module(name, Squeeze())


def _flag(unit: Any) -> None:
    unit.with_cp = True


def _own_forward(unit: Any) -> None:
    unit.forward = lambda x: x * 2.0


def _hook(unit: Any) -> None:
    unit.bn1.register_forward_hook(lambda m, args, out: out * 1.5)


def _pre_hook(unit: Any) -> None:
    unit.conv2.register_forward_pre_hook(lambda m, args: (args[0] * 1.5,))


def _hook_on_unit(unit: Any) -> None:
    unit.register_forward_hook(lambda m, args, out: out * 1.5)


def _replaced_norm_forward(unit: Any) -> None:
    unit.bn1.forward = lambda x: x


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "other convolution": (_replace_conv, "OtherConv is no plain convolution"),
    "group norm": (_group_norm, "GroupNorm is no plain batch normalisation"),
    "circular padding": (_circular, "pads by 'circular'"),
    "activation": (_activation, "its activation is LeakyReLU"),
    "squeeze and excitation": (_added("se"), "its se (Squeeze) is no part"),
    "anti-aliasing": (_added("aa"), "its aa (Squeeze) is no part"),
    "drop block": (_added("drop_block"), "its drop_block (Squeeze) is no part"),
    "checkpointing": (_flag, "with_cp is set"),
    "forward": (_own_forward, "its forward was replaced"),
    "forward of a norm": (_replaced_norm_forward, "the forward of its BatchNorm2d was replaced"),
    "hook": (_hook, "a hook is registered on its BatchNorm2d"),
    "pre-hook": (_pre_hook, "a hook is registered on its Conv2d"),
    "hook on the unit": (_hook_on_unit, "a hook is registered on its BasicBlock"),
}


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_unit_falls_back_alone(change: str, when: str) -> None:
    apply, reason = CHANGES[change]
    plain = up.net()
    fast = copy.deepcopy(plain)
    if when == "after":
        accelerate(fast, impl="reference")
    for model in (plain, fast):
        apply(model.stage2[0].branches[1][0])
    if when == "before":
        accelerate(fast, impl="reference")
    x = image(32, 32, batch=2, dtype=torch.float64)
    assert_trains_alike(fast, plain, x)
    assert_evaluates_alike(fast, plain, x)
    told = {b.name: b.reason for b in explain(fast).blocks if b.reason}
    assert "stage2.0.branches.1" in told
    assert set(told) <= {"stage2.0.branches.1", "stage2.0.branches.1.0"}  # the branch, and the unit if it is named
    assert all(reason in why for why in told.values())


@pytest.mark.parametrize("change", ["hook", "checkpointing", "forward of a norm"])
def test_the_first_unit_decides_for_no_other(change: str) -> None:
    plain = up.net()
    CHANGES[change][0](plain.stage2[0].branches[0][0] if change == "checkpointing" else plain.layer1[0])
    fast = accelerate(plain, impl="reference")
    assert len([b for b in explain(fast).blocks if b.reason]) <= 2
    assert CHANGES[change][1] in str(explain(fast))


def _leaky_fusion(module: Any) -> None:
    module.relu = nn.LeakyReLU(0.1)


def _hooked_fusion(module: Any) -> None:
    module.relu.register_forward_hook(lambda m, args, out: out * 1.5)


def _hooked_layer(module: Any) -> None:
    module.fuse_layers[0][1][1].register_forward_hook(lambda m, args, out: out * 1.5)


def _hooked_upsampling(module: Any) -> None:
    module.fuse_layers[0][1][2].register_forward_hook(lambda m, args, out: out * 1.5)


def _mixed_statistics(module: Any) -> None:
    module.fuse_layers[0][1][1].eval()


def _grouped(module: Any) -> None:
    module.fuse_layers[0][1][1] = nn.GroupNorm(2, 4).double()


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (_leaky_fusion, "LeakyReLU"),
        (_hooked_fusion, "hook"),
        (_hooked_layer, "hook"),
        (_hooked_upsampling, "hook"),
        (_grouped, "GroupNorm"),
    ],
)
def test_a_changed_fusion_falls_back_alone(apply: Callable[[Any], None], reason: str) -> None:
    plain = up.net()
    fast = accelerated(plain)
    for model in (plain, fast):
        apply(model.stage2[0])
    assert_trains_alike(fast, plain, image(32, 32, batch=2, dtype=torch.float64))
    assert list(reasons(fast)) == ["stage2.0"]
    assert reason in reasons(fast)["stage2.0"]


def test_norms_of_two_minds() -> None:
    """One normalisation in evaluation mode beside others that take the batch's statistics."""
    plain = up.net()
    fast = accelerated(plain)
    x = image(32, 32, batch=2, dtype=torch.float64)
    results = []
    for model in (plain, fast):
        model.train()
        _mixed_statistics(model.stage2[0])
        results.append(model(x))
    for a, e in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)
    assert "differ in where they take their statistics" in reasons(fast)["stage2.0"]


def test_hook_on_an_accelerated_block_is_called() -> None:
    fast = accelerated(up.net())
    seen = []
    fast.stage2[0].register_forward_hook(lambda m, args, out: seen.append(len(out)))
    fast.layer1.register_forward_hook(lambda m, args, out: seen.append(out.dim()))
    fast.eval()(image(32, 32, dtype=torch.float64))
    assert seen == [4, 3]
    assert not reasons(fast)


@pytest.mark.parametrize("change", ["stride", "narrow", "norm"])
def test_units_that_do_not_fit_together_fail_as_they_did(change: str) -> None:
    """Of this package's own class, so nothing is tried before."""
    unit = BasicBlock(16, 16, nn.BatchNorm2d).eval()
    x = torch.randn(2, 16, 8, 8)
    if change == "stride":
        unit.conv1.stride = (2, 2)
    elif change == "narrow":  # plain modules broadcast the shortcut
        unit.conv1, x = nn.Conv2d(1, 16, 3, padding=1, bias=False), x[:, :1]
    else:
        unit.bn1 = nn.BatchNorm2d(8).eval()

    def outcome(module: nn.Module) -> torch.Tensor | str:
        try:
            return module(x)
        except RuntimeError as error:
            return str(error)

    wanted = outcome(unit)
    accelerate_blocks(unit, "auto", "lean")
    given = outcome(unit)
    assert given == wanted if isinstance(wanted, str) else torch.equal(given, wanted)  # type: ignore[arg-type]


def test_a_fused_form_that_does_not_run_is_a_refusal() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, padding=1, bias=False)
            self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.downsample = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv1(self.bn1(x).relu())
            return self.conv2(self.bn2(y).relu()) + self.downsample(x)

    unit = PreActivation().eval()
    x = torch.randn(2, 4, 8, 8)
    wanted, state = unit(x), torch.get_rng_state()
    accelerate_blocks(unit, "auto", "lean")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(unit(x), wanted)
