"""Networks of which a user takes a part, or that are used in ways that only some of autograd knows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import upstream_standins as up
from comparison import (
    accelerated,
    assert_all_fast,
    assert_evaluates_alike,
    assert_near,
    assert_trains_alike,
    reasons,
    tiny,
)
from tiny_networks import enliven, gradients, image, relative_l2
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hrnet_fast.training import explain
from hrnet_fast.training.accelerate import accelerate_blocks

X = {"dtype": torch.float64}
MEMORY = pytest.mark.parametrize("memory", ["lean", "min"])


@MEMORY
@pytest.mark.parametrize("taken", [(0,), (2,), (1, 2)])
def test_targets_that_nobody_used_give_no_gradients(taken: tuple[int, ...], memory: str) -> None:
    """None and not zero: an optimizer with momentum or weight decay would move a parameter by the latter."""
    plain = up.net().train()
    fast = accelerated(plain, memory=memory)
    for model in (plain, fast):
        maps = model(image(32, 32, batch=2, **X))
        sum((maps[k] * torch.linspace(0, 1, maps[k].numel(), **X).view_as(maps[k])).sum() for k in taken).backward()
    assert len(gradients(plain)) < len(list(plain.parameters()))
    assert_near(gradients(fast), gradients(plain))


@MEMORY
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_expanded_gradients(impl: str, layout: torch.memory_format, memory: str) -> None:
    """A sum's gradient is one number with strides of 0."""
    if impl == "cpu":
        pytest.importorskip("hrnet_fast._C", reason="the compiled extension was not built")
    plain = up.net().train().to(memory_format=layout)
    fast = accelerated(plain, impl, memory)
    for model in (plain, fast):
        model.stage2[0](model_inputs(layout))[0].sum().backward()
        model.layer1(image(8, 8, batch=2, channels=8, **X).to(memory_format=layout)).sum().backward()
    assert_near(gradients(fast), gradients(plain))


def model_inputs(layout: torch.memory_format) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(4)
    return [
        torch.randn(2, c, 16 >> k, 16 >> k, generator=random, **X).to(memory_format=layout).requires_grad_()
        for k, c in enumerate(up.CHANNELS)
    ]


def test_forward_mode() -> None:
    plain = tiny("v1").double()
    fast = accelerated(plain)
    x, direction = image(32, 32, **X), torch.randn(1, 3, 32, 32, **X)
    with forward_ad.dual_level():
        own, given = (forward_ad.unpack_dual(m(forward_ad.make_dual(x, direction))).tangent for m in (plain, fast))
    assert relative_l2(given, own) <= 1e-12
    assert "forward-mode" in str(explain(fast))
    assert_evaluates_alike(fast, plain, x)
    assert_all_fast(fast)


def test_functional_call() -> None:
    plain = up.net().eval()
    fast = accelerated(plain)
    weights = {name: p * 1.1 for name, p in plain.named_parameters()}
    x = image(32, 32, **X)
    own, given = (torch.func.functional_call(m, weights, (x,)) for m in (plain, fast))
    for a, e in zip(given, own, strict=True):
        assert relative_l2(a, e) <= 1e-10
    assert_all_fast(fast)


@MEMORY
def test_convolutions_with_bias_and_other_geometry(memory: str) -> None:
    """Biases, dilation, groups and an odd kernel are read from the layers, in units and in fusions."""
    plain = up.net(up.SegmentationModule)
    unit, layers = plain.stage2[0].branches[1][0], plain.stage2[0].fuse_layers
    unit.conv1 = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
    unit.conv2 = nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
    layers[0][1][0] = nn.Conv2d(8, 4, 1)
    layers[0][2][0] = nn.Conv2d(12, 4, 1, groups=4, bias=False)
    layers[2][0][0][0] = nn.Conv2d(4, 4, 5, 2, 2, groups=2)
    plain = enliven(plain).double()
    fast = accelerated(plain, memory=memory)
    assert_trains_alike(fast, plain)
    assert_evaluates_alike(fast, plain, image(64, 96, **X))
    assert_all_fast(fast)


def test_folded_norms_fall_back() -> None:
    plain = up.net().eval()
    fast = accelerated(plain)
    for model in (plain, fast):
        unit = model.stage2[0].branches[0][1]
        unit.conv1, unit.bn1 = fuse_conv_bn_eval(unit.conv1, unit.bn1), nn.Identity()
    assert_evaluates_alike(fast, plain, image(32, 32, **X))
    assert list(reasons(fast)) == []  # the other unit of the branch is fast
    told = {b.name: b.reason for b in explain(fast).blocks if b.reason}
    assert list(told) == ["stage2.0.branches.0"]
    assert "Identity is no plain batch normalisation" in told["stage2.0.branches.0"]


@pytest.mark.slow
@MEMORY
def test_networks_inside_networks(memory: str) -> None:
    """Two models that share a trunk, and one that contains an accelerated other."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = up.Net()
            self.second = up.Net(up.SegmentationModule)
            self.second.layer1 = self.first.layer1

        def forward(self, x: torch.Tensor) -> Any:
            return [*self.first(x), *self.second(x)]

    plain = enliven(Two()).double()
    fast = accelerated(plain, memory=memory)
    assert_trains_alike(fast, plain)
    assert_all_fast(fast)
    assert type(accelerated(fast).first.layer1).__mro__.count(nn.Sequential) == 1


@pytest.mark.parametrize("geometry", [(3, 2, 1), (3, 2, 0), (3, 3, 1), (3, 4, 1), (5, 2, 2), (1, 2, 0)])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_half_precision_over_one_column(width: int, geometry: tuple[int, int, int]) -> None:
    """Where the library's results are wrong, and parts of a weight's gradient unwritten; compared with float32's."""
    if width + 2 * geometry[2] < geometry[0]:
        width = geometry[0]  # narrower ones have no results
    plain = nn.Sequential(nn.Sequential(nn.Conv2d(4, 6, *geometry, bias=False), nn.BatchNorm2d(6), nn.ReLU()))
    x = torch.randn(2, 4, 9, width)
    found = []
    for half in (False, True):
        row: Any = copy.deepcopy(plain)
        if half:
            accelerate_blocks(row, "auto", "lean")
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = row(x)
        out.float().square().sum().backward()
        found.append((out.float(), row[0][0].weight.grad))
    for expected, actual in zip(*found, strict=True):
        assert relative_l2(actual, expected) < 0.05
