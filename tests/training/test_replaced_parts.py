"""Parameters and forwards that are replaced on single layers, before accelerating and after: they are computed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import hrnet_fast as hf


def twice(module: nn.Module) -> None:
    module.forward = lambda x: 2 * type(module).forward(module, x)  # type: ignore[method-assign]


def leaky(module: nn.Module) -> None:
    module.forward = lambda x: nn.functional.leaky_relu(x, 0.3)  # type: ignore[method-assign]


REPLACED: dict[str, Callable[[Any], Any]] = {
    "classifier's weight": lambda net: weight_norm(net.last_layer[3]),
    "head's weight": lambda net: weight_norm(net.last_layer[0]),
    "unit's weight": lambda net: weight_norm(net.layer1[0].conv1),
    "fusion's weight": lambda net: weight_norm(net.stage2[0].fuse_layers[0][1][0]),
    "stem's weight": lambda net: weight_norm(net.conv1),
    "a normalisation's weight": lambda net: weight_norm(net.layer1[0].bn1, dim=None),
    "head": lambda net: twice(net.last_layer),
    "head's ReLU": lambda net: leaky(net.last_layer[2]),
    "unit's ReLU": lambda net: leaky(net.layer1[0].relu),
    "stem's ReLU": lambda net: leaky(net.relu),
    "fusion's ReLU": lambda net: leaky(net.stage2[0].relu),
    "shortcut": lambda net: twice(net.layer1[0].downsample),
    "fusion's term": lambda net: twice(net.stage2[0].fuse_layers[0][1]),
    "head's padding": lambda net: setattr(net.last_layer[0], "padding", (1, 1)),
    "head's stride": lambda net: setattr(net.last_layer[0], "stride", (2, 2)),
}


@pytest.mark.parametrize("part", REPLACED)
def test_replaced_parts_are_computed(part: str) -> None:
    plain = hf.HRNet(width=4, head="v2", num_outputs=3, num_blocks=1, num_modules=(1, 1, 1), impl="reference").double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    early, late = copy.deepcopy(plain), hf.accelerate(copy.deepcopy(plain).eval())
    late(x)  # examines its structure
    for net in (plain, early, late):
        REPLACED[part](net)
    hf.accelerate(early)
    for training in (False, True):
        expected = plain.train(training)(x)
        for net in (early, late):
            torch.testing.assert_close(net.train(training)(x), expected, rtol=1e-9, atol=1e-9)
