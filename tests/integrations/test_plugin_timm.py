"""timm's HRNets under names of ours: timm's conventions, and the libraries that create networks by timm's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from tiny_networks import enliven, gradients, image, relative_l2, train_once
from torch import Tensor, nn

import hrnet_fast as hf
import hrnet_fast.integrations.timm  # registers the names

FAST, PLAIN = "hrnet_fast_w18_small", "hrnet_w18_small"


def assert_fast(model: nn.Module) -> None:
    report = hf.explain(model)
    assert report.fast == len(report.blocks) >= 17, str(report)


def assert_trains_alike(fast: nn.Module, plain: nn.Module, channels: int = 3) -> None:
    fast, plain = enliven(fast).double(), enliven(plain).double()
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert_fast(fast)
    x = image(64, 64, batch=2, channels=channels, dtype=torch.float64)
    for a, e in zip(train_once(fast, x), train_once(plain, x), strict=True):
        assert relative_l2(a, e) < 1e-10
    own, other = gradients(fast), gradients(plain)
    assert own.keys() == other.keys()
    assert all(relative_l2(own[k], other[k]) < 1e-8 for k in own if other[k].norm() > 1e-9)


def test_every_network_has_a_name_and_its_weights() -> None:
    for tags in (False, True):
        theirs = [n for n in timm.list_models("hrnet_*", pretrained=tags) if not n.startswith("hrnet_fast")]
        assert timm.list_models("hrnet_fast_*", pretrained=tags) == [
            n.replace("hrnet_", "hrnet_fast_", 1) for n in theirs
        ]
        assert len(theirs) >= 11
    own, other = (timm.models.get_pretrained_cfg(f"{n}.ms_in1k") for n in (FAST, PLAIN))
    assert own.hf_hub_id == other.hf_hub_id == "timm/hrnet_w18_small.ms_in1k"
    assert (own.mean, own.crop_pct, own.interpolation) == (other.mean, other.crop_pct, other.interpolation)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "channels"),
    [({"num_classes": 5, "in_chans": 1, "global_pool": "max"}, 1), ({"features_only": True, "out_indices": (1, 2)}, 3)],
    ids=["classes", "features"],
)
def test_timms_arguments(options: dict[str, Any], channels: int) -> None:
    fast, plain = timm.create_model(FAST, memory="min", **options), timm.create_model(PLAIN, **options)
    assert type(fast) is type(plain)
    assert fast.default_cfg == plain.default_cfg
    assert_trains_alike(fast, plain, channels)


def test_another_classifier_and_dropout() -> None:
    fast = timm.create_model(FAST, drop_rate=0.5)
    assert fast.head_drop.p == 0.5
    fast.reset_classifier(7)
    assert fast(image(32, 32, batch=2)).shape == (2, 7)
    assert_fast(fast)
    with pytest.raises(hf.InputError, match="memory='most'"):
        timm.create_model(FAST, memory="most")


@pytest.mark.slow
def test_pretrained_weights_are_those_of_timms_network(tmp_path: Path) -> None:
    plain = enliven(timm.create_model(PLAIN))
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    overlay = {"file": str(tmp_path / "w.pth")}
    fast = timm.create_model(f"{FAST}.ms_in1k", pretrained=True, pretrained_cfg_overlay=overlay)
    assert fast.pretrained_cfg["tag"] == "ms_in1k"
    state = fast.state_dict()
    assert all(torch.equal(state[k], v) for k, v in plain.state_dict().items())


@pytest.mark.slow
def test_segmentation_models_encoder() -> None:
    fast, plain = (smp.Unet(f"tu-{n}", encoder_weights=None, decoder_channels=(8,) * 5) for n in (FAST, PLAIN))
    assert_trains_alike(fast, plain)
    mean = [smp.encoders.get_preprocessing_params(f"tu-{n}")["mean"] for n in (FAST, PLAIN)]
    assert mean[0] == mean[1]


class DeepLabCutBackbone(nn.Module):
    """As DeepLabCut uses timm's networks: branches of stride 4 to 32, normalisations frozen in every ``train()``."""

    def __init__(self, name: str, increased_channel_count: bool) -> None:
        super().__init__()
        location = "incre" if increased_channel_count else ""
        self.model = timm.create_model(
            name, pretrained=False, features_only=True, feature_location=location, out_indices=(1, 2, 3, 4)
        )

    def train(self, mode: bool = True) -> DeepLabCutBackbone:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False).eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.model(x)
        resized = (nn.functional.interpolate(y, size=first.shape[2:], mode="bilinear") for y in others)
        return torch.cat([first, *resized], dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("increased", [False, True])
def test_deeplabcuts_backbone(increased: bool) -> None:
    fast, plain = (DeepLabCutBackbone(name, increased) for name in (FAST, PLAIN))
    before = enliven(fast).model.bn1.running_mean.clone()
    assert_trains_alike(fast, plain)
    assert torch.equal(fast.model.bn1.running_mean.float(), before)
    assert fast.model.stage2[0].branches[0][0].bn1.weight.grad is None
