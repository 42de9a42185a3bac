"""`Engine.module`: an engine in the place of a network, and what its lack of parameters means."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_networks import image, relative_l2, two_stages
from torch import nn

import hrnet_fast as hf
from hrnet_fast.errors import InputError

X = image(32, 32)


class Detector(nn.Module):
    """As mmdetection's: calls its backbone, then other layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone: nn.Module = two_stages("v1")
        self.tail = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.backbone(x))  # type: ignore[no-any-return]


@pytest.fixture
def detector() -> Detector:
    return Detector().eval()


@pytest.fixture
def engines(detector: Detector) -> Detector:
    """The same with an engine as its backbone."""
    other = copy.deepcopy(detector)
    other.backbone = hf.optimize_for_inference(detector.backbone, X).module()
    return other


def test_it_stands_in_for_the_network(detector: Detector, engines: Detector) -> None:
    assert not list(engines.backbone.parameters())
    assert not list(engines.backbone.buffers())
    assert "no parameters" in repr(engines)
    assert not engines.backbone.training
    given = engines.eval()(X)
    assert relative_l2(given, detector(X)) <= 1e-5
    given.sum().backward()  # of the other layers
    assert engines.tail.weight.grad is not None
    with torch.inference_mode():
        assert torch.equal(engines(X), given)


def test_its_weights_are_the_networks(detector: Detector, engines: Detector) -> None:
    with torch.no_grad():
        next(detector.backbone.parameters()).mul_(2)
    with pytest.raises(InputError, match="weights changed"):
        engines(X)
    engines.backbone.engine.refresh()  # type: ignore[operator, union-attr]
    assert relative_l2(engines(X), detector(X)) <= 1e-5


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.train(), "evaluation mode only|no parameters to train"),
        (lambda m: m.state_dict(), "'backbone', which has no parameters"),
        (lambda m: m.backbone.state_dict(), "its top"),
        (lambda m: m.load_state_dict(Detector().state_dict()), r"'backbone\.conv1\.weight' given"),
        (lambda m: m.load_state_dict(Detector().state_dict(), strict=False), "no parameters to load"),
        (lambda m: m.double(), "float64; this engine stays"),
        (lambda m: m.half(), "float16; this engine stays"),
        (lambda m: m.to("meta"), "move to meta"),
        (lambda m: m(X.clone().requires_grad_()), "gives none"),
        (copy.deepcopy, "cannot be copied or pickled"),
        (pickle.dumps, "cannot be copied or pickled"),
    ],
)
def test_what_needs_parameters_is_refused(engines: Detector, ask: Callable[[Any], Any], message: str) -> None:
    before = engines(X)
    with pytest.raises(InputError, match=message):
        ask(engines)
    assert engines.backbone.training is False
    assert torch.equal(engines(X), before)


def test_what_changes_nothing_is_accepted(engines: Detector) -> None:
    before = engines(X)
    engines.eval().float().to("cpu").requires_grad_(False).zero_grad()
    engines.to(memory_format=torch.channels_last)
    engines.load_state_dict(engines.tail.state_dict(prefix="tail."))
    assert relative_l2(engines(X), before) <= 1e-6
