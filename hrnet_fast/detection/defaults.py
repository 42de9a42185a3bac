"""The detectors that mmdetection ships on HRNetV2p, by name (mmdetection 3.3, ``configs/hrnet``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrnet_fast.config import HRNetConfig
from hrnet_fast.config.fields import check_one_of
from hrnet_fast.detection.config_parts import AssignConfig, BoxLossConfig, ProposalConfig, RPNConfig
from hrnet_fast.detection.detector_config import DetectorConfig, PictureConfig
from hrnet_fast.detection.head_configs import BoxStageConfig, FCOSConfig, MaskConfig, RoIConfig, SemanticConfig

KINDS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "htc", "fcos")
# Deltas' divisors and IoU threshold of each stage of a cascade (arXiv 1712.00726), and the factor of its losses.
_CASCADE = (
    ((0.1, 0.1, 0.2, 0.2), 0.5, 1.0),
    ((0.05, 0.05, 0.1, 0.1), 0.6, 0.5),
    ((0.033, 0.033, 0.067, 0.067), 0.7, 0.25),
)
_CASCADE_RPN = RPNConfig(
    box_loss=BoxLossConfig("smooth_l1", 1 / 9), allowed_border=0, train_proposals=ProposalConfig(2000, 2000)
)
# Mean and deviation of the network's channels, which are blue, green, red here.
BGR = PictureConfig(channel_order="bgr", mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))


def default_heads(kind: str) -> dict[str, Any]:
    """Return the fields of :class:`DetectorConfig` other than network and classes that a shipped detector has.

    Raises:
        ConfigError: `kind` is unknown.
    """
    check_one_of("DetectorConfig", "kind", kind, KINDS)
    if kind == "fcos":
        return {"fcos": FCOSConfig(), "picture": BGR}
    mask = MaskConfig(information_flow=kind == "htc") if kind == "htc" or "mask" in kind else None
    if kind in ("faster_rcnn", "mask_rcnn"):
        stage = BoxStageConfig(assign=AssignConfig(match_low_quality=mask is not None))
        return {"rpn": RPNConfig(), "roi": RoIConfig((stage,), mask=mask)}
    stages = tuple(
        BoxStageConfig(
            class_agnostic=True,
            stds=stds,
            box_loss=BoxLossConfig("smooth_l1"),
            assign=AssignConfig(iou, iou, iou, match_low_quality=kind == "htc"),
            weight=weight,
        )
        for stds, iou, weight in _CASCADE
    )
    more: dict[str, Any] = {}
    if kind == "htc":
        more = {"semantic": SemanticConfig(), "interleaved": True, "score_threshold": 0.001}
    return {"rpn": _CASCADE_RPN, "roi": RoIConfig(stages, mask=mask, **more)}


def make_detector_config(
    kind: str, width: int = 32, num_classes: int = 80, *, heads: Mapping[str, Any] | None = None, **network: Any
) -> DetectorConfig:
    """Return the configuration of a detector that mmdetection ships, by its name.

    Args:
        kind: one of :data:`KINDS`.
        width: of the HRNet, C.
        num_classes: without the background.
        heads: fields of :class:`DetectorConfig` in the place of those of :func:`default_heads`.
        network: arguments of :meth:`HRNetConfig.make` and fields of :class:`HRNetConfig` that are to differ.

    Raises:
        ConfigError: a value is unknown or out of range.
    """
    stride = 2 if kind == "fcos" else 1
    options = {"pyramid_stride": stride, "norm_eval": True} | network
    return DetectorConfig(
        HRNetConfig.make(width, "v2p", **options), num_classes, **default_heads(kind) | dict(heads or {})
    )
