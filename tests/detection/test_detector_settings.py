"""Configurations of detectors: their round trip, mmdetection's settings, and those that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_detectors import tiny_detector_config

from hrnet_fast.detection import KINDS, DetectorConfig
from hrnet_fast.detection.head_configs import MaskConfig
from hrnet_fast.errors import ConfigError


@pytest.mark.parametrize("kind", KINDS)
def test_configuration_round_trip(kind: str) -> None:
    config = tiny_detector_config(kind)
    assert config.kind == kind
    assert DetectorConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"score_threshold": 2.0},
        {"short_side": 0},
        {"channel_order": "gbr"},
        {"num_classes": 0},
        {"stages": ()},
        {"rpn": None},
        {"no_such_field": 1},
        {"num_levels": 4},
        {"pyramid_stride": 2},  # the anchors' and regions' strides would be half of the levels'
        {"strides": (8, 16, 32, 64)},
        {"head": "v2"},
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        tiny_detector_config("mask_rcnn").override(**changes)


def test_strides_are_the_levels() -> None:
    config = tiny_detector_config("fcos")
    with pytest.raises(ConfigError, match=r"pyramid_stride=1 has \(4, 8, 16, 32, 64\)"):
        config.override(pyramid_stride=1)
    assert config.override(pyramid_stride=1, strides=(4, 8, 16, 32, 64)).fcos.strides[0] == 4


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("fcos", {"legacy": True}, "legacy=True is of two-stage detectors"),
        ("faster_rcnn", {"interleaved": True}, "mask is None"),
        ("mask_rcnn", {"mask": MaskConfig(information_flow=True)}, "two or more stages"),
    ],
)
def test_settings_without_effect(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_detector_config(kind).override(**changes)
