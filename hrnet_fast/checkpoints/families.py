"""The registry of checkpoint families, in the order of recognition: special cases first."""

from __future__ import annotations

from collections.abc import Mapping

from hrnet_fast.checkpoints import authors, csail, openmmlab, openseg, timm
from hrnet_fast.checkpoints.detectors import DETECTOR_FAMILIES
from hrnet_fast.checkpoints.family import Family
from hrnet_fast.errors import CheckpointError, shown

# State_dicts of this package's own networks, whose names no upstream has.
NATIVE_PYRAMID = Family(
    "hrnet_fast",
    "hrnet_fast's own state_dict of a detection pyramid: the authors' trunk names, mmdetection's neck",
    heads=("v2p",),
    marks=("stage2.", "neck.fpn_convs."),
    defaults={"init": "kaiming"},
)
NATIVE_V1H = Family(
    "v1h",
    "hrnet_fast's own state_dict of HRNetV1h (section 7): logits at 1/4",
    heads=("v1h",),
    marks=("stage2.", "expand_layer."),
    defaults={"upsample": "bilinear", "upsample_to": "target"},
)

_ORDERED = (
    NATIVE_PYRAMID,
    NATIVE_V1H,
    openmmlab.MMSEG_OCR,
    openmmlab.MMSEG,
    openmmlab.MMPOSE_FACE,
    openmmlab.MMPOSE_0X_FACE,
    openmmlab.MMPOSE,
    openmmlab.MMPOSE_0X,
    openmmlab.MMPOSE_0X_HIGHER,
    *DETECTOR_FAMILIES,
    authors.DET,
    openmmlab.MMDET,
    openmmlab.MMDET_1X,
    openseg.OPENSEG_OCR,
    openseg.OPENSEG,
    openmmlab.MM_BACKBONE,
    authors.SEG_OCR,
    authors.SEG,
    authors.HIGHER,
    authors.POSE,
    authors.FACE,
    authors.POSE_IMAGENET,
    authors.CLS,
    timm.TIMM,  # the same names as cls, which therefore comes first; both compute the same
    timm.TIMM_FEATURES,
    csail.CSAIL,
    authors.BACKBONE,
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ORDERED}


def get_family(name: str) -> Family:
    """Return a family by name.

    Raises:
        CheckpointError: an unknown name.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointError(f"family {shown(name)} is not one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def detect_family(keys: Mapping[str, object]) -> Family | None:
    """Return the family whose marks all occur among `keys`, or None."""
    return next((family for family in FAMILIES.values() if family.matches(keys)), None)
