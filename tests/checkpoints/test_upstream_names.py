"""The upstreams' key names of every head, and what their files leave open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_states import network, state_of
from tiny_networks import image

import hrnet_fast as hf


def conv(*names: str) -> list[str]:
    return [f"{name}.weight" for name in names]


def biased(*names: str) -> list[str]:
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def norm(*names: str) -> list[str]:
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{part}" for name in names for part in parts]


def module(*names: str) -> list[str]:
    """OpenMMLab's convolution modules."""
    return [key for name in names for key in (*conv(f"{name}.conv"), *norm(f"{name}.bn"))]


def higher(prefix: str) -> list[str]:
    step = f"{prefix}deconv_layers.0"
    unit = f"{step}.1.0"
    return (
        biased(f"{prefix}final_layers.0", f"{prefix}final_layers.1")
        + conv(f"{step}.0.0", f"{unit}.conv1", f"{unit}.conv2")
        + norm(f"{step}.0.1", f"{unit}.bn1", f"{unit}.bn2")
    )


CONTEXT = "decode_head.1.object_context_block"
OBJECTS = "ocr_distri_head.object_context_block"
LEVELS = range(5)
# (family, head): keys outside the trunk.
HEADS: dict[tuple[str, str], list[str]] = {
    ("pose", "v1"): biased("final_layer"),
    ("mmpose", "v1"): biased("head.final_layer"),
    ("mmpose_0x", "v1"): biased("keypoint_head.final_layer"),
    ("seg", "v2"): biased("last_layer.0", "last_layer.3") + norm("last_layer.1"),
    ("mmseg", "v2"): module("decode_head.convs.0") + biased("decode_head.conv_seg"),
    ("face", "face"): biased("head.0", "head.3") + norm("head.1"),
    ("mmpose_face", "face"): biased("head.conv_layers.0", "head.final_layer") + norm("head.conv_layers.1"),
    ("mmpose_0x_face", "face"): biased("keypoint_head.final_layer.0", "keypoint_head.final_layer.3")
    + norm("keypoint_head.final_layer.1"),
    ("mmdet", "v2p"): biased("neck.reduction_conv.conv", *(f"neck.fpn_convs.{i}.conv" for i in LEVELS)),
    ("mmdet_1x", "v2p"): biased("neck.reduction_conv.conv", *(f"neck.fpn_conv.{i}" for i in LEVELS)),
    ("det", "v2p"): biased("neck.reduction_conv.0", *(f"neck.fpn_conv.{i}" for i in LEVELS)),
    ("seg_ocr", "ocr"): biased("conv3x3_ocr.0", "aux_head.0", "aux_head.3", "cls_head")
    + norm("conv3x3_ocr.1", "aux_head.1")
    + conv(*(f"{OBJECTS}.{name}.{i}" for name in ("f_pixel", "f_object") for i in (0, 2)))
    + norm(*(f"{OBJECTS}.{name}.{i}" for name in ("f_pixel", "f_object") for i in ("1.0", "3.0")))
    + conv(f"{OBJECTS}.f_down.0", f"{OBJECTS}.f_up.0", "ocr_distri_head.conv_bn_dropout.0")
    + norm(f"{OBJECTS}.f_down.1.0", f"{OBJECTS}.f_up.1.0", "ocr_distri_head.conv_bn_dropout.1.0"),
    ("mmseg_ocr", "ocr"): module("decode_head.0.convs.0", "decode_head.1.bottleneck")
    + biased("decode_head.0.conv_seg", "decode_head.1.conv_seg")
    + module(*(f"{CONTEXT}.{name}.{i}" for name in ("query_project", "key_project") for i in (0, 1)))
    + module(*(f"{CONTEXT}.{name}" for name in ("value_project", "out_project", "bottleneck"))),
    ("higher_hrnet", "higher"): higher(""),
    ("mmpose_0x_higher", "higher"): higher("keypoint_head."),
    ("backbone", "features"): [],
    ("mm_backbone", "features"): [],
}
PREFIXED = ("mmpose", "mmpose_0x", "mmpose_0x_higher", "mmpose_face", "mmpose_0x_face", "mmseg", "mmseg_ocr", "mmdet",
            "mmdet_1x", "det", "mm_backbone")  # fmt: skip


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_names(family: str, head: str) -> None:
    keys = set(hf.convert_checkpoint(state_of(family, head), to=family))
    prefix = "backbone." if family in PREFIXED else ""
    parts = ("conv1.", "bn1.", "conv2.", "bn2.", "layer1.", "transition", "stage")
    trunk = {key for key in keys if key.startswith(tuple(prefix + part for part in parts))}
    assert keys - trunk == set(HEADS[family, head])
    own = {key for key in network(family, head).state_dict() if key.startswith(parts)}
    assert trunk == {prefix + key for key in own}


def test_the_parts_of_both_ocr_heads_correspond() -> None:
    """The attention's projections by the roles they play, not by the order in which they are listed."""
    state = state_of("seg_ocr")
    there = hf.convert_checkpoint(state, to="mmseg_ocr")
    roles = {
        "conv3x3_ocr.0": "decode_head.1.bottleneck.conv",
        "cls_head": "decode_head.1.conv_seg",
        "aux_head.0": "decode_head.0.convs.0.conv",
        "aux_head.3": "decode_head.0.conv_seg",
        f"{OBJECTS}.f_pixel.0": f"{CONTEXT}.query_project.0.conv",
        f"{OBJECTS}.f_pixel.2": f"{CONTEXT}.query_project.1.conv",
        f"{OBJECTS}.f_object.0": f"{CONTEXT}.key_project.0.conv",
        f"{OBJECTS}.f_object.3.0": f"{CONTEXT}.key_project.1.bn",
        f"{OBJECTS}.f_down.0": f"{CONTEXT}.value_project.conv",
        f"{OBJECTS}.f_up.1.0": f"{CONTEXT}.out_project.bn",
        "ocr_distri_head.conv_bn_dropout.0": f"{CONTEXT}.bottleneck.conv",
    }
    for ours, theirs in roles.items():
        assert torch.equal(there[f"{theirs}.weight"], state[f"{ours}.weight"]), ours


NEAREST = ("nearest", "scale", False)
TARGET = ("bilinear", "target", False)
TWICE = ("bilinear", "scale_then_target", False)
UNSAID: dict[str, tuple[str, str, bool]] = {
    "pose": NEAREST,
    "cls": NEAREST,
    "timm_features": NEAREST,
    "det": NEAREST,
    "mmpose": NEAREST,
    "mmpose_0x": NEAREST,
    "mmdet": NEAREST,
    "mmdet_1x": NEAREST,
    "seg": TARGET,
    "face": TARGET,
    "seg_ocr": ("bilinear", "target", True),
    "mmpose_face": ("bilinear", "scale", False),
    "mmpose_0x_face": ("bilinear", "scale", False),
    "mmseg": TWICE,
    "mmseg_ocr": TWICE,
}


@pytest.mark.parametrize("family", UNSAID)
def test_what_files_leave_unsaid(family: str) -> None:
    loaded = hf.load_checkpoint(state_of(family))
    config = loaded.config
    assert (config.upsample, config.upsample_to, config.align_corners) == UNSAID[family]
    assert config.norm.momentum == (0.01 if family == "face" else 0.1)
    assert config.head.dropout == (0.05 if family == "seg_ocr" else 0.0)
    # Sizes that no power of two divides: taken where the upstream takes them, refused where it fails.
    x: Any = image(65, 97)
    if config.upsample_to == "scale":
        with pytest.raises(hf.InputError):
            loaded(x)
    else:
        loaded(x)
