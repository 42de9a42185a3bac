"""Units and fusions with parts of other kinds: recognised by what they compute, or refused with the reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import upstream_standins as up
from comparison import accelerated, assert_all_fast, assert_trains_alike, reasons, tiny
from tiny_networks import image
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.reference.blocks import ResidualUnit
from hrnet_fast.reference.norm import FrozenBatchNorm2d
from hrnet_fast.training import accelerate, explain
from hrnet_fast.training.batch_norm import is_frozen


class DoubleReluUnit(up.BasicBlock):
    """openseg.pytorch's: one ReLU inside and another behind the sum."""

    def __init__(self, inplanes: int, planes: int) -> None:
        super().__init__(inplanes, planes)
        self.relu_in = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu_in(out + x)


@pytest.mark.slow
def test_units_with_two_activations() -> None:
    plain = up.net(up.AlignedModule, DoubleReluUnit)
    fast = accelerated(plain)
    assert_trains_alike(fast, plain, image(32, 32, batch=2, dtype=torch.float64))
    assert_all_fast(fast)
    plain.stage2[0].branches[0][0].relu_in = nn.LeakyReLU(0.2)
    (reason,) = [b.reason for b in explain(accelerated(plain)).blocks if b.name == "stage2.0.branches.0.0"]
    assert reason == "its relu_in (LeakyReLU) is no part of a plain residual unit"
    plain.stage2[0].branches[0][0].relu_in = nn.ReLU()


class Resize(nn.Module):
    """Upsamples by a class of its own."""

    def __init__(self, factor: float, mode: str) -> None:
        super().__init__()
        self.factor, self.mode = factor, mode

    def forward(self, x: Tensor) -> Tensor:
        size = [int(n * self.factor) for n in x.shape[2:]]
        return nn.functional.interpolate(x, size=size, mode=self.mode)


def with_resize(mode: str) -> Any:
    plain = up.net()
    for block in plain.stage2:
        for i, row in enumerate(block.fuse_layers):
            for j in range(i + 1, len(row)):
                row[j][2] = Resize(2 ** (j - i), mode)
    return plain


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsampling_is_recognised_by_what_it_computes(mode: str) -> None:
    plain = with_resize(mode)
    fast = accelerated(plain)
    assert_trains_alike(fast, plain, image(32, 32, batch=2, dtype=torch.float64))
    assert_all_fast(fast)
    # What changes afterwards counts at the next call.
    for model in (plain, fast):
        model.stage2[0].fuse_layers[0][1][2].mode = "nearest" if mode == "bilinear" else "bilinear"
    assert_trains_alike(fast, plain, image(32, 32, batch=2, dtype=torch.float64))
    assert "upsample in several ways" in reasons(fast)["stage2.0"]
    assert list(reasons(fast)) == ["stage2.0"]


@pytest.mark.parametrize("mode", ["bicubic", "area"])
def test_other_interpolations_are_refused(mode: str) -> None:
    plain = with_resize(mode)
    fast = accelerated(plain)
    if mode == "area":  # at whole factors the same as nearest
        assert_all_fast(fast)
    else:
        assert reasons(fast).keys() == {"stage2.0", "stage2.1"}
        assert "Resize where an interpolation" in str(reasons(fast))
    assert_trains_alike(fast, plain, image(32, 32, batch=2, dtype=torch.float64))


def test_activated_normalisations_are_refused() -> None:
    """In-place ABN, which openseg.pytorch can be built with, writes over its convolution's output."""
    layers = pytest.importorskip("timm").layers
    plain = up.net()
    for unit in plain.stage2[0].branches[0]:
        unit.bn1 = layers.InplaceAbn(4, apply_act=False).double()
    told = {b.name: b.reason for b in explain(accelerated(plain)).blocks if b.reason}
    assert told.keys() == {f"stage2.0.branches.0{end}" for end in ("", ".0", ".1")}
    assert set(told.values()) == {"InplaceAbn is no plain batch normalisation"}


class HardCoded(nn.Module):
    """Frozen normalisation as some detectors have it, whose forward reads no `eps`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels))

    def forward(self, x: Any) -> Any:
        own: Any = self
        scale = own.weight * (own.running_var + 1e-3).rsqrt()
        return x * scale.view(-1, 1, 1) + (own.bias - own.running_mean * scale).view(-1, 1, 1)


def test_frozen_normalisations_are_recognised_by_what_they_compute() -> None:
    assert not is_frozen(HardCoded(4))
    assert is_frozen(pytest.importorskip("torchvision").ops.FrozenBatchNorm2d(4))
    assert is_frozen(FrozenBatchNorm2d(4))
    assert not is_frozen(nn.BatchNorm2d(4))
    assert not is_frozen(nn.BatchNorm2d(4, affine=False))


def test_checkpointing_is_kept_or_replaced() -> None:
    with pytest.raises(hf.InputError, match="'keep' and 'replace'"):
        hf.accelerate(up.net(), checkpointing="off")
    plain = tiny("v1").double()
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    fast = hf.accelerate(model, impl="reference", checkpointing="replace")
    assert_all_fast(fast)
    assert_trains_alike(fast, plain)
    units = [m for m in hf.restore(fast).modules() if isinstance(m, ResidualUnit)]
    assert units
    assert all(m.gradient_checkpointing for m in units)


def test_only_units_that_checkpoint_are_taken_over() -> None:
    """The others of a row keep what `memory` says, and a flag that is set later counts at the next call."""
    plain = tiny("v1", num_blocks=2).double()
    fast = accelerate(copy.deepcopy(plain), impl="reference", memory="fast", checkpointing="replace")
    branch = fast.stage2[0].branches[0]
    assert [part.chain.checkpointed for part in branch.parts()] == [False]
    branch[1].gradient_checkpointing = True
    assert [part.chain.checkpointed for part in branch.parts()] == [False, True]
    assert_trains_alike(fast, plain)
    assert_all_fast(fast)


def test_another_default_device_does_not_matter() -> None:
    plain = up.net(block=DoubleReluUnit)
    with torch.device("meta"):
        fast = accelerate(plain, impl="reference")
    assert_all_fast(fast)


def test_recognition_calls_no_hook_of_a_frozen_normalisation() -> None:
    torchvision = pytest.importorskip("torchvision")

    class Own(torchvision.ops.FrozenBatchNorm2d):  # type: ignore[misc,name-defined]
        """A class that was not tried before."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)  # type: ignore[no-any-return]

    seen: list[object] = []
    norm = Own(4)
    norm.register_forward_hook(lambda *given: seen.append(given))
    assert is_frozen(norm)
    assert seen == []
