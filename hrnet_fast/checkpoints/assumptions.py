"""What a checkpoint does not tell and a default decided, where it changes the numbers and files of both kinds exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrnet_fast.checkpoints.family import Family
from hrnet_fast.config import HRNetConfig

_BILINEAR_HEADS = ("v1h", "v2", "ocr", "face")
# Trunks alone come from networks of either kind: pose, detection and classification, or segmentation.
_TRUNKS = ("backbone", "mm_backbone")


def assumptions(family: Family, config: HRNetConfig, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one line for each thing that was assumed; none where the caller gave it.

    Args:
        family: of the checkpoint.
        config: the network that was made of it.
        given: the caller's overrides, and what the caller named ``decode``.
    """
    assumed = f"assumed, as a file of family {family.name!r} does not tell: "
    lines: list[str] = []
    if family.keypoints == "msra" and given.get("decode") is None:
        lines.append(f"{assumed}heatmaps decode by 'msra'; give decode='dark' or 'udp' if it was trained so")
    if family.name in _TRUNKS and not {"upsample", "upsample_to"} & set(given):
        lines.append(
            f"{assumed}{config.upsample} upsampling in the fusions; give "
            "upsample='bilinear', upsample_to='target' for the trunk of the authors' segmentation "
            "(upsample_to='scale_then_target' for mmsegmentation's)"
        )
    if config.head.kind in _BILINEAR_HEADS and config.bilinear and "align_corners" not in given:
        lines.append(
            f"{assumed}bilinear upsampling with "
            f"align_corners={config.align_corners}; give align_corners={not config.align_corners} if it was trained so"
        )
    return tuple(lines)
