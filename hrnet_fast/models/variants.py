"""The table of named networks: those of the paper's tables, of the authors' repositories and of timm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hrnet_fast.config import HRNetConfig


@dataclass(frozen=True)
class Variant:
    """A named network.

    Attributes:
        name: argument of :func:`create_model`.
        task: pose, segmentation, detection, classification, landmarks or features.
        input_size: the usual (H, W) in pixels.
        description: one line, with the table or section of the paper.
        options: arguments of :meth:`HRNetConfig.make`.
    """

    name: str
    task: str
    input_size: tuple[int, int]
    description: str
    options: dict[str, Any] = field(default_factory=dict)

    def make(self) -> HRNetConfig:
        """Build the configuration."""
        return HRNetConfig.make(**self.options)


POSE, SEG, DET, CLS, FACE, HIGHER = (256, 192), (1024, 2048), (800, 1216), (224, 224), (256, 256), (512, 512)
_KEYPOINTS = {"head": "v1", "num_outputs": 17}
_CITYSCAPES = {"num_outputs": 19}
_IMAGENET = {"head": "c", "num_outputs": 1000}
_SMALL_V1 = {"width": 16, "num_blocks": 2, "num_modules": (1, 1, 1), "stage1_channels": 32, "stage1_blocks": 1}
_SMALL_V2 = {"width": 18, "num_blocks": 2, "num_modules": (1, 3, 2), "stage1_blocks": 2}

# (name, widths, task, input, description, options); {w} is the width. V2 pose interpolates nearest, as the pose net
# does.
_SERIES: tuple[tuple[str, tuple[int, ...], str, tuple[int, int], str, dict[str, Any]], ...] = (
    ("hrnetv1_w{w}_pose", (18, 32, 48), "pose", POSE, "HRNetV1-W{w}, COCO keypoints (Table 1)", _KEYPOINTS),
    ("hrnetv2_w{w}_pose", (18, 32, 48), "pose", POSE, "HRNetV2-W{w} on keypoints (section 7, V1 vs. V2)",
     {"head": "v2", "num_outputs": 17, "upsample": "nearest", "upsample_to": "scale"}),
    ("higher_hrnet_w{w}", (32, 48), "pose", HIGHER, "HigherHRNet-W{w}, COCO keypoints and tags (arXiv 1908.10357)",
     {"head": "higher", "num_outputs": 17}),
    ("hrnetv2_w{w}_seg", (18, 40, 48), "segmentation", SEG, "HRNetV2-W{w}, Cityscapes (Table 3)",
     {"head": "v2", **_CITYSCAPES}),
    ("hrnetv1h_w{w}_seg", (18, 40, 48), "segmentation", SEG, "HRNetV1h-W{w}, Cityscapes (section 7, V1 vs. V2)",
     {"head": "v1h", **_CITYSCAPES}),
    ("hrnetv2_w{w}_seg_ocr", (18, 48), "segmentation", SEG, "HRNetV2-W{w} + OCR, Cityscapes (Table 3)",
     {"head": "ocr", **_CITYSCAPES}),
    ("hrnetv2p_w{w}_det", (18, 32, 40, 48), "detection", DET, "HRNetV2p-W{w}: backbone and pyramid (Table 19)",
     {"head": "v2p"}),
    ("hrnet_w{w}_c", (18, 30, 32, 40, 44, 48, 64), "classification", CLS, "HRNet-W{w}-C, ImageNet (Table 15)",
     _IMAGENET),
    ("hrnet_w{w}_c_bottleneck", (44, 76, 96), "classification", CLS,
     "HRNet-W{w}-C of bottlenecks (Table 15, lower half)", {**_IMAGENET, "block": "bottleneck"}),
    ("hrnet_w{w}_ci", (27, 36, 45), "classification", CLS, "HRNet-W{w}-Ci (Table 16)", {**_IMAGENET, "head": "ci"}),
    ("hrnet_w{w}_cii", (25, 34, 43), "classification", CLS, "HRNet-W{w}-Cii (Table 16)", {**_IMAGENET, "head": "cii"}),
    ("hrnet_w{w}_ssld", (18, 48), "classification", CLS, "HRNet-W{w}-C without biases in its head (ssld files)",
     {**_IMAGENET, "conv_bias": False}),
    ("hrnet_w{w}_features", (18, 32, 48), "features", CLS, "HRNet-W{w}: a list of branches", {"head": "features"}),
)  # fmt: skip

_SINGLE: tuple[Variant, ...] = (
    Variant("hrnet_w18_small", "classification", CLS, "HRNet-W18-C small v1 (branches of 16, 32, 64, 128)",
            {**_IMAGENET, **_SMALL_V1}),
    Variant("hrnet_w18_small_v2", "classification", CLS, "HRNet-W18-C small v2", {**_IMAGENET, **_SMALL_V2}),
    Variant("hrnetv2_w18_small_v1_seg", "segmentation", SEG, "HRNetV2-W18 small v1, Cityscapes",
            {"head": "v2", **_CITYSCAPES, **_SMALL_V1}),
    Variant("hrnetv2_w18_small_v2_seg", "segmentation", SEG, "HRNetV2-W18 small v2, Cityscapes",
            {"head": "v2", **_CITYSCAPES, **_SMALL_V2}),
    *(
        Variant(f"hrnetv2_w18_face{suffix}", "landmarks", FACE, f"HRNetV2-W18, {points} landmarks (Appendix D)",
                {"width": 18, "head": "face", "num_outputs": points})
        for suffix, points in (("", 98), ("_wflw", 98), ("_300w", 68), ("_cofw", 29), ("_aflw", 19))
    ),
    Variant("hrnetv1_w32_pose_fusion_a", "pose", POSE, "HRNetV1-W32, final fusion unit only (Table 12 a)",
            {**_KEYPOINTS, "fusion_units": "final"}),
    Variant("hrnetv1_w32_pose_fusion_b", "pose", POSE, "HRNetV1-W32, fusion units across stages (Table 12 b)",
            {**_KEYPOINTS, "fusion_units": "across"}),
    Variant("hrnetv1_w32_pose_product", "pose", POSE, "HRNetV1-W32 fused by product (section 7)",
            {**_KEYPOINTS, "fusion": "product"}),
    Variant("hrnetv1_w32_pose_bilinear_down", "pose", POSE, "HRNetV1-W32 downsampling bilinearly (section 7)",
            {**_KEYPOINTS, "downsample": "bilinear"}),
    Variant("hrnetv1_w32_pose_maintained", "pose", POSE, "HRNetV1-W32, four streams from stage 2 on (section 7)",
            {**_KEYPOINTS, "num_branches": (4, 4, 4)}),
)  # fmt: skip

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        *(
            Variant(name.format(w=w), task, size, text.format(w=w), {"width": w, **options})
            for name, widths, task, size, text, options in _SERIES
            for w in widths
        ),
        *_SINGLE,
    )
}
