"""Torchvision's own detectors on HRNetV2p: they train, detect, are accelerated, and keep the network's keys."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from tiny_networks import assert_same, image, relative_l2, tiny
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet

import hrnet_fast as hf
from hrnet_fast.errors import ConfigError

IMAGES = list(image(64, 96, batch=2) * 0.2 + 0.5)


def detector(kind: type[nn.Module], **changes: Any) -> Any:
    torch.manual_seed(0)
    network = hf.restore(tiny("v2p", norm_eval=True, channels=32, **changes))
    few = {"rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20} if issubclass(kind, FasterRCNN) else {}
    return kind(network.as_torchvision_backbone(), num_classes=3, min_size=64, max_size=96, **few)


def losses(model: nn.Module) -> dict[str, Tensor]:
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[:, 10:50, 8:60] = 1
    target = {"boxes": torch.tensor([[8.0, 10.0, 60.0, 50.0]]), "labels": torch.tensor([1]), "masks": masks}
    torch.manual_seed(1)  # of the boxes that a step trains on
    found: dict[str, Tensor] = model.train()(IMAGES, [target, target])
    return found


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(FasterRCNN, {}), (MaskRCNN, {}), (RetinaNet, {}), (FCOS, {"pyramid_stride": 2})],
    ids=["faster_rcnn", "mask_rcnn", "retinanet", "fcos"],
)
def test_torchvisions_detectors(kind: type[nn.Module], changes: dict[str, Any]) -> None:
    """Losses with the accelerated network are those without, all parameters get gradients, and boxes are found."""
    plain = detector(kind, **changes)
    fast = hf.accelerate(copy.deepcopy(plain), impl="reference")
    expected, found = losses(plain), losses(fast)
    assert all(block.fast for block in hf.explain(fast).blocks)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    torch.stack(list(found.values())).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in fast.backbone.parameters())
    (one, two) = fast.eval()(IMAGES)
    assert one["boxes"].shape[1:] == two["boxes"].shape[1:] == (4,)


def test_an_engine_executes_the_backbone() -> None:
    """And the head, all of whose inputs are its levels."""
    model, x = detector(RetinaNet).eval(), image(64, 96, batch=2)
    with torch.no_grad():
        expected = model.backbone(x)
        hf.optimize_for_inference(model, x, inplace=True)
        found = model.backbone(x)
        model(IMAGES)
    parts = [(b.name, b.kind, b.fast) for b in hf.explain(model).blocks]
    assert parts == [("backbone", "engine", True), ("head", "engine", True)]
    assert list(found) == list(expected)
    for name, level in expected.items():
        assert relative_l2(found[name], level) < 1e-5


def test_the_network_is_the_body() -> None:
    network = tiny("v2p")
    keys = list(network.state_dict())
    backbone = network.as_torchvision_backbone()
    levels = backbone(image(64, 96))
    assert type(levels) is OrderedDict
    assert list(levels) == ["0", "1", "2", "3", "4"]
    assert_same(tuple(levels.values()), network(image(64, 96)))
    assert {level.shape[1] for level in levels.values()} == {backbone.out_channels}
    assert backbone.body is network
    assert list(network.state_dict()) == keys
    assert list(backbone.state_dict()) == [f"body.{key}" for key in keys]


def test_other_heads_give_no_pyramid() -> None:
    with pytest.raises(ConfigError, match=r"'features' head, which gives no pyramid; accepted is the 'v2p' head"):
        tiny("features").as_torchvision_backbone()
