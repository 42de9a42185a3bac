"""mmdetection's detectors on HRNetV2p, from its own configurations with fewer channels, units and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmcv_ext
from torch import nn

mmcv_ext.install()

import mmdet  # noqa: E402
from mmengine.config import Config  # noqa: E402

FOLDER = Path(mmdet.__file__).parent / ".mim" / "configs" / "hrnet"
FILES = {
    "faster_rcnn": "faster-rcnn_hrnetv2p-w18-1x_coco",
    "mask_rcnn": "mask-rcnn_hrnetv2p-w18-1x_coco",
    "cascade_rcnn": "cascade-rcnn_hrnetv2p-w18-20e_coco",
    "cascade_mask_rcnn": "cascade-mask-rcnn_hrnetv2p-w18_20e_coco",
    "htc": "htc_hrnetv2p-w18_20e_coco",
    "fcos": "fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco",
}
# Boxes that are sampled, proposed and detected.
FEWER = {512: 64, 1000: 100, 2000: 200, 100: 20}


def shrink(values: Any, width: int) -> Any:
    """Return a configuration with `width` channels where it has 256 or 1024, fewer boxes, and 3 classes for 80."""
    if isinstance(values, (list, tuple)):
        return type(values)(shrink(value, width) for value in values)
    if not isinstance(values, dict):
        return values
    made = {key: shrink(value, width) for key, value in values.items() if key != "init_cfg"}
    made = {key: width if "channels" in key and value in (256, 1024) else value for key, value in made.items()}
    made |= {key: FEWER.get(made[key], made[key]) for key in ("num", "max_per_img") if key in made}
    if "num_classes" in made:
        made["num_classes"] = {80: 3, 183: 7}[made["num_classes"]]
    return made


def small(kind: str) -> Config:
    config = Config.fromfile(FOLDER / f"{FILES[kind]}.py")
    model = shrink(config.model.to_dict(), 32 if kind == "fcos" else 16)  # FCOS has 32 groups
    extra = model["backbone"]["extra"]
    for k in (1, 2, 3, 4):
        stage = extra[f"stage{k}"]
        stage["num_modules"], stage["num_blocks"] = 1, (1,) * len(stage["num_blocks"])
        stage["num_channels"] = (4,) if k == 1 else tuple(4 << i for i in range(k))
    model["neck"]["in_channels"] = [4, 8, 16, 32]
    return Config({"model": model, "default_scope": "mmdet"})


def theirs(config: Config) -> nn.Module:
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    return MODELS.build(config.model)  # type: ignore[no-any-return]


def legacy(values: Any) -> Any:
    """Return a configuration with the parts that mmdetection 3.3 has for files of 1.x."""
    if isinstance(values, list):
        return [legacy(value) for value in values]
    if not isinstance(values, dict):
        return values
    made = {key: legacy(value) for key, value in values.items()}
    if made.get("type") == "AnchorGenerator":
        made |= {"type": "LegacyAnchorGenerator", "center_offset": 0.5}
    elif made.get("type") == "DeltaXYWHBBoxCoder":
        made["type"] = "LegacyDeltaXYWHBBoxCoder"
    elif made.get("type") == "RoIAlign":
        made |= {"sampling_ratio": 2, "aligned": False}
    return made
