"""Notes on settings that change results, that a state_dict does not contain, and that took the family's default."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hrnet_fast.checkpoints.family import ANY_TRUNK, Family
from hrnet_fast.config import HRNetConfig
from hrnet_fast.detection.detector_config import DetectorConfig

# Settings of a detector's selection; others are of its training alone.
_SELECTION = ("score_threshold", "nms_iou", "per_image", "mask_threshold", "before_nms", "groups")
_BILINEAR_HEADS = ("v1h", "v2", "ocr", "face")


def find_assumptions(
    family: Family, config: HRNetConfig, given: Mapping[str, Any], keys: Collection[str]
) -> tuple[str, ...]:
    """Return one line for each setting that took a default and that files of this family have in two variants.

    Args:
        family: of the checkpoint.
        config: the network inferred from it.
        given: the caller's overrides and ``decode``.
        keys: the keys of the file.
    """
    assumed = f"assumed, as a file of family {family.name!r} does not tell: "
    lines: list[str] = []
    if family.keypoints == "msra" and given.get("decode") is None:
        lines.append(f"{assumed}heatmaps decode by 'msra'; give decode='dark' or 'udp' if it was trained so")
    if family.name in ANY_TRUNK and not {"upsample", "upsample_to"} & set(given):
        lines.append(
            f"{assumed}{config.upsample} upsampling in the fusions; give "
            "upsample='bilinear', upsample_to='target' for the trunk of the authors' segmentation "
            "(upsample_to='scale_then_target' for mmsegmentation's)"
        )
    alone = not any(key.startswith(family.ignored) for key in keys)  # without the keys of a detector's head
    if config.head.kind == "v2p" and alone and not family.detector and "pyramid_stride" not in given:
        lines.append(f"{assumed}levels that begin at 1/4; give pyramid_stride=2 for the neck of mmdetection's FCOS")
    interpolates = config.head.kind in _BILINEAR_HEADS or config.upsample == "bilinear"
    if interpolates and config.bilinear and "align_corners" not in given:
        lines.append(
            f"{assumed}bilinear upsampling with "
            f"align_corners={config.align_corners}; give align_corners={not config.align_corners} if it was trained so"
        )
    return tuple(lines)


def detector_assumptions(config: DetectorConfig, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line with the settings of a detector's selection and pictures that took mmdetection's defaults.

    Args:
        config: the detector inferred from the checkpoint.
        given: the caller's overrides.
    """
    parts = (config.roi or config.fcos, config.picture)
    names = (*_SELECTION, "short_side", "long_side", "channel_order")
    taken = [f"{n}={getattr(part, n)}" for part in parts for n in names if hasattr(part, n) and n not in given]
    if config.roi is not None and config.roi.mask is None:
        taken = [one for one in taken if not one.startswith("mask_")]
    if not taken:
        return ()
    return (f"assumed, as a detector's file does not tell: {', '.join(taken)}, as mmdetection ships it",)
