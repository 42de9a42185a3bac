"""Checkpoint families of openseg.pytorch, by the authors of OCR: a 3x3 convolution over all resolutions."""

from __future__ import annotations

from collections.abc import Collection

from hrnet_fast.checkpoints.family import Family
from hrnet_fast.checkpoints.trunk import trunk_prefixes

# Entries of the ImageNet head, which that repository's training keeps.
_IMAGENET_HEAD = ("backbone.incre_modules.", "backbone.downsamp_modules.", "backbone.final_layer.")
_DEFAULTS = {"upsample": "bilinear", "upsample_to": "target", "align_corners": True, "upsample_logits": True}

OPENSEG = Family(
    "openseg",
    "openseg.pytorch hrnet_w48: HRNetV2 with a 3x3 convolution over all resolutions; logits of the input's size",
    heads=("v2",),
    marks=("backbone.stage2.", "cls_head.1.0."),
    trunk_prefix="backbone.",
    renames=(
        ("cls_head.0.", "last_layer.0."),
        ("cls_head.1.0.", "last_layer.1."),
        ("cls_head.3.", "last_layer.3."),
    ),
    ignored=_IMAGENET_HEAD,
    defaults=_DEFAULTS | {"dropout": 0.1},
    head_conv_bias=True,
    always={"mixing_kernel": 3, "output_bias": False},
    keypoints="none",
)
OPENSEG_OCR = Family(
    "openseg_ocr",
    "openseg.pytorch hrnet_w48_ocr and _ocr_b: a tuple of auxiliary and main logits of the input's size",
    heads=("ocr",),
    marks=("backbone.stage2.", "conv3x3.1.0.", "ocr_distri_head.object_context_block."),
    trunk_prefix="backbone.",
    renames=(
        ("conv3x3.0.", "conv3x3_ocr.0."),
        ("conv3x3.1.0.", "conv3x3_ocr.1."),
        ("aux_head.1.0.", "aux_head.1."),
        ("aux_head.2.", "aux_head.3."),
    ),
    ignored=_IMAGENET_HEAD,
    defaults=_DEFAULTS | {"dropout": 0.05, "ocr_outputs": "tuple"},
    head_conv_bias=True,
    always={"mixing_kernel": 3, "attention_bias": True},
    keypoints="none",
)


def uses_inplace_abn(keys: Collection[str]) -> bool:
    """Whether a file is from the repository's first branch, which normalises by InPlaceABN; under any prefix.

    InPlaceABN scales by ``|w| + eps`` and contains a leaky ReLU in the heads. The key of the head's normalisation has
    no ``0.``, because the layer is not in a sequence with a ReLU.
    """
    for prefix in trunk_prefixes(keys):
        if prefix.endswith("backbone."):
            outer = prefix.removesuffix("backbone.")
            plain, ocr = {"cls_head.1.running_mean", "cls_head.3.weight"}, {"conv3x3.1.running_mean", "cls_head.weight"}
            if any({outer + mark for mark in marks} <= set(keys) for marks in (plain, ocr)):
                return True
    return False
