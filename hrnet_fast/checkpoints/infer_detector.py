"""Inference of a detector's configuration from the keys and shapes of its state_dict, and the reverse."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hrnet_fast.checkpoints.infer import StateShapes
from hrnet_fast.config import HRNetConfig
from hrnet_fast.detection.defaults import default_heads
from hrnet_fast.detection.detector import Detector
from hrnet_fast.detection.detector_config import DetectorConfig
from hrnet_fast.detection.head_configs import FCOSConfig, RoIConfig
from hrnet_fast.errors import CheckpointError
from hrnet_fast.skip_init import meta_device

Shape = tuple[int, ...]
TRUNK = "backbone."


@functools.lru_cache(maxsize=8)
def detector_shapes(config: DetectorConfig) -> Mapping[str, Shape]:
    """Return keys and shapes of a detector's state_dict, the trunk's without ``backbone.``, without allocating it."""
    with meta_device():
        state = Detector(config, impl="reference").state_dict()
    return MappingProxyType({key.removeprefix(TRUNK): tuple(value.shape) for key, value in state.items()})


def infer_detector(shapes: Mapping[str, Shape], network: HRNetConfig, kind: str) -> DetectorConfig:
    """Return the detector whose state_dict has these shapes.

    What a state_dict does not contain (thresholds, numbers of boxes, losses) is as mmdetection ships it.

    Args:
        shapes: shape of each entry, the trunk's without ``backbone.``.
        network: backbone and pyramid.
        kind: one of :data:`hrnet_fast.detection.KINDS`.

    Raises:
        CheckpointError: a key that determines the detector's shape is missing, or has no counterpart here.
        ConfigError: no detector has these shapes.
    """
    s = StateShapes(shapes)
    heads = default_heads(kind)
    if kind == "fcos":
        heads["fcos"] = _infer_fcos(s, heads["fcos"])
        return DetectorConfig(network, s.size("bbox_head.conv_cls.weight", 0, 4), **heads)
    first = "roi_head.bbox_head" + (".0" if s.has("roi_head.bbox_head.0") else "")
    classes = s.size(f"{first}.fc_cls.weight", 0, 2) - 1
    heads["rpn"] = dataclasses.replace(heads["rpn"], channels=s.size("rpn_head.rpn_conv.weight", 0, 4))
    anchors = s.size("rpn_head.rpn_cls.weight", 0, 4)
    if anchors != heads["rpn"].anchors.per_cell:
        raise CheckpointError(
            f"rpn_head has {anchors} anchors for each cell; mmdetection's HRNetV2p detectors have "
            f"{heads['rpn'].anchors.per_cell}. Build Detector(DetectorConfig(...)) with their scales and ratios, and "
            "use its load_state_dict."
        )
    heads["roi"] = _infer_roi(s, heads["roi"], first, classes, network)
    return DetectorConfig(network, classes, **heads)


def _infer_roi(s: StateShapes, default: RoIConfig, first: str, classes: int, network: HRNetConfig) -> RoIConfig:
    stages = s.count("roi_head.bbox_head") or 1
    if stages > len(default.stages):
        raise CheckpointError(
            f"roi_head has {stages} stages; mmdetection's cascades have {len(default.stages)}, and the settings of "
            "others are not in a state_dict. Build Detector(DetectorConfig(...)) and use its load_state_dict."
        )
    area = s.size(f"{first}.shared_fcs.0.weight", 1, 2) / network.head.channels
    rows = s.size(f"{first}.fc_reg.weight", 0, 2)
    shape: dict[str, Any] = {
        "fc_channels": s.size(f"{first}.fc_cls.weight", 1, 2),
        "num_fcs": s.count(f"{first}.shared_fcs"),
    }
    if classes > 1:  # one class has four rows either way
        shape["class_agnostic"] = rows == 4
    changes: dict[str, Any] = {
        "stages": tuple(dataclasses.replace(stage, **shape) for stage in default.stages[:stages]),
        "pool_size": math.isqrt(round(area)),
    }
    if default.mask is not None:
        mask = "roi_head.mask_head" + (".0" if s.has("roi_head.mask_head.0") else "")
        outputs = s.size(f"{mask}.conv_logits.weight", 0, 4)
        changes["mask"] = dataclasses.replace(
            default.mask,
            channels=s.size(f"{mask}.conv_logits.weight", 1, 4),
            num_convs=s.count(f"{mask}.convs"),
            class_agnostic=classes > 1 and outputs == 1,
        )
    semantic = default.semantic
    if semantic is not None:
        weight = "roi_head.semantic_head.conv_logits.weight"
        changes["semantic"] = None
        if s.has("roi_head.semantic_head"):
            changes["semantic"] = dataclasses.replace(
                semantic,
                num_classes=s.size(weight, 0, 4),
                channels=s.size(weight, 1, 4),
                num_convs=s.count("roi_head.semantic_head.convs"),
            )
    return dataclasses.replace(default, **changes)


def _infer_fcos(s: StateShapes, default: FCOSConfig) -> FCOSConfig:
    channels = s.size("bbox_head.conv_cls.weight", 1, 4)
    return dataclasses.replace(
        default,
        channels=channels,
        num_convs=s.count("bbox_head.cls_convs"),
        groups=default.groups if channels % default.groups == 0 else math.gcd(channels, default.groups),
    )
