"""Heads of two-stage detectors in files of mmdetection 1.x and of the authors' HRNet-Object-Detection, based on it.

They have no ``roi_head.`` before the heads' names, and the background is the first class; in 2.x it is the last, and
neither box deltas nor masks have it (mmdetection's ``tools/model_converters/upgrade_model_version.py``, which rolls the
biases of box deltas and masks by another class than their weights).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from hrnet_fast.checkpoints.openmmlab import FPN_CONV

_NECK = {"neck.reduction_conv.0.": "neck.reduction_conv.conv.", **dict(FPN_CONV)}
_HEADS = ("bbox_head.", "mask_head.", "semantic_head.", "mask_iou_head.")
_CLASSES = re.compile(r"bbox_head\.(0\.)?fc_cls\.weight")
_UNUSED = "mask_head.0.conv_res."  # joins the features of the mask head before, of which the first has none


def upgrade_detector(state: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor] | None:
    """Return the entries of a two-stage detector of 1.x as 2.x has them; None if it is something else.

    Args:
        state: entries in the file's names.
        notes: receives what was done.
    """
    first = next((key for key in state if _CLASSES.fullmatch(key)), None)
    if first is None or "rpn_head.rpn_cls.weight" not in state:
        return None
    outputs = _rows(state[first])
    upgraded = {_renamed(k): _without_background(k, v, outputs) for k, v in state.items() if not k.startswith(_UNUSED)}
    notes.append(
        "heads of mmdetection 1.x: the background was made the last class, and legacy=True computes boxes and regions "
        "as mmdetection 3.3 does for such files; save_checkpoint(..., detector=model.config) writes this setting"
    )
    if len(upgraded) < len(state):
        notes.append(f"left out {len(state) - len(upgraded)} entries of {_UNUSED}, which nothing uses")
    return upgraded


def _renamed(key: str) -> str:
    if key.startswith(_HEADS):
        return f"roi_head.{key}"
    own = next((prefix for prefix in _NECK if key.startswith(prefix)), "")
    return _NECK.get(own, "") + key.removeprefix(own)


def _without_background(key: str, value: Tensor, outputs: int) -> Tensor:
    """Return a layer's rows with the background last, or without it; those that all classes share as they are."""
    rows = _rows(value)
    if key.startswith("bbox_head.") and ".fc_cls." in key and rows:
        return torch.cat([value[1:], value[:1]])
    if key.startswith("bbox_head.") and ".fc_reg." in key and rows == 4 * outputs:
        return value[4:]
    if key.startswith("mask_head.") and ".conv_logits." in key and rows == outputs:
        return value[1:]
    return value


def _rows(value: Tensor) -> int:
    return value.shape[0] if value.dim() else 0
