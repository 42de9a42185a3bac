"""Checkpoint families of the authors' repositories.

Their parameter names are the canonical names, except for the prefixes of the detection repository.
"""

from hrnet_fast.checkpoints.family import Family
from hrnet_fast.checkpoints.openmmlab import DETECTORS, FPN_CONV, MIXED_1X1

# Residual units named head.<part>.<row>.<unit>, and the classifier: the head of the authors' ImageNet weights for pose.
# It predates Figure 11, and no current network has it. (The head of a face net is named head.<layer>.weight.)
_OLD_IMAGENET_HEAD = (*(f"head.{part}.{row}." for part in range(10) for row in range(10)), "classifier.")
_BILINEAR = {"upsample": "bilinear", "upsample_to": "target"}

POSE = Family(
    "pose",
    "authors' deep-high-resolution-net.pytorch: HRNetV1 heatmaps",
    heads=("v1",),
    marks=("stage2.", "final_layer.weight"),
    ignored=_OLD_IMAGENET_HEAD,  # left in pose files that were trained from the ImageNet weights
    keypoints="msra",
)
HIGHER = Family(
    "higher_hrnet",
    "authors' HigherHRNet-Human-Pose-Estimation: heatmaps and tags at 1/4 and 1/2",
    heads=("higher",),
    marks=("stage2.", "final_layers."),
)
SEG = Family(
    "seg",
    "authors' HRNet-Semantic-Segmentation (pytorch-v1.1): HRNetV2 logits at 1/4",
    heads=("v2",),
    marks=("stage2.", "last_layer."),
    defaults=_BILINEAR,
    head_conv_bias=True,
    always=MIXED_1X1,
    keypoints="none",
)
SEG_OCR = Family(
    "seg_ocr",
    "authors' HRNet-Semantic-Segmentation (HRNet-OCR): [auxiliary, main] logits at 1/4",
    heads=("ocr",),
    marks=("stage2.", "ocr_distri_head."),
    defaults=_BILINEAR | {"align_corners": True, "dropout": 0.05},
    head_conv_bias=True,
    always=MIXED_1X1,
    keypoints="none",
)
CLS = Family(
    "cls",
    "authors' HRNet-Image-Classification, and the bias-less ssld files: ImageNet logits",
    heads=("c", "ci", "cii"),
    marks=("stage2.", "classifier."),
    defaults={"init": "kaiming"},
)
FACE = Family(
    "face",
    "authors' HRNet-Facial-Landmark-Detection: HRNetV2 heatmaps",
    heads=("face",),
    marks=("stage2.", "head.0.weight"),
    defaults=_BILINEAR | {"bn_momentum": 0.01},
    head_conv_bias=True,
    always=MIXED_1X1,
    keypoints="face",
)
DET = Family(
    "det",
    "authors' HRNet-Object-Detection: HRNetV2p levels",
    heads=("v2p",),
    marks=("backbone.stage2.", "neck.reduction_conv.0."),
    trunk_prefix="backbone.",
    renames=(("neck.reduction_conv.0.", "neck.reduction_conv.conv."), *FPN_CONV),
    ignored=DETECTORS,
    defaults={"init": "kaiming"},
)
POSE_IMAGENET = Family(
    "pose_imagenet",
    "authors' ImageNet weights for the pose net (hrnet_w32-36af842e.pth): loads as a backbone, to='backbone' writes it",
    heads=("features",),
    marks=("stage2.", "head.0.0.0."),
    ignored=("head.", "classifier.", "fc.", "final_layer.", "incre_modules.", "downsamp_modules."),
    defaults={"init": "kaiming"},
)
BACKBONE = Family(
    "backbone",
    "stem, stages and transitions alone, in the authors' names: a list of branches",
    heads=("features",),
    marks=("stage2.",),
    defaults={"init": "kaiming"},
)
