"""Checkpoint families of mmpose, mmsegmentation and mmdetection: the authors' trunk names under ``backbone.``."""

from hrnet_fast.checkpoints.family import Family

# Entries of detector heads, and the first names of HRFPN's convolutions. The authors' detection repository is based on
# an mmdetection of that time.
DETECTORS = ("rpn_head.", "bbox_head.", "mask_head.", "roi_head.", "semantic_head.", "mask_iou_head.")
FPN_CONV = tuple((f"neck.fpn_conv.{i}.", f"neck.fpn_convs.{i}.conv.") for i in range(10))

# Fields that all heads over concatenated resolutions share.
MIXED_1X1 = {"mixing_kernel": 1, "mixing_channels": 0, "output_bias": True, "attention_bias": False}

# A state_dict does not contain the stride of a neck's convolutions; all FCOS configurations of mmdetection have 2.
_FCOS = (
    "bbox_head.conv_centerness.",
    {"pyramid_stride": 2},
    "pyramid_stride=2 assumed, since the head is FCOS's; give pyramid_stride=1 if its levels begin at 1/4",
)
_OCR_BLOCK = "ocr_distri_head.object_context_block."
_MM_OCR_BLOCK = "decode_head.1.object_context_block."
_LANDMARKS = {"upsample": "bilinear"}


def _projection_renames(theirs: str, ours: str, convs: int) -> tuple[tuple[str, str], ...]:
    """Return the renames of one projection of the OCR attention; a single convolution has no number in its name."""
    rules = []
    for i in range(convs):
        own = f"{_MM_OCR_BLOCK}{theirs}." + (f"{i}." if convs > 1 else "")
        rules += [
            (f"{own}conv.", f"{_OCR_BLOCK}{ours}.{2 * i}."),
            (f"{own}bn.", f"{_OCR_BLOCK}{ours}.{2 * i + 1}.0."),
        ]
    return tuple(rules)


MMPOSE = Family(
    "mmpose",
    "mmpose 1.x top-down heatmaps (head.final_layer)",
    heads=("v1",),
    marks=("backbone.stage2.", "head.final_layer."),
    trunk_prefix="backbone.",
    renames=(("head.final_layer.", "final_layer."),),
    defaults={"init": "kaiming"},
    keypoints="msra",
)
MMPOSE_0X = Family(
    "mmpose_0x",
    "mmpose 0.x top-down heatmaps (keypoint_head.final_layer)",
    heads=("v1",),
    marks=("backbone.stage2.", "keypoint_head.final_layer.weight"),
    trunk_prefix="backbone.",
    renames=(("keypoint_head.final_layer.", "final_layer."),),
    defaults={"init": "kaiming"},
    keypoints="msra",
)
MMPOSE_FACE = Family(
    "mmpose_face",
    "mmpose 1.x landmarks on concatenated resolutions (head.conv_layers)",
    heads=("face",),
    marks=("backbone.stage2.", "head.conv_layers.0."),
    trunk_prefix="backbone.",
    renames=(
        ("head.conv_layers.0.", "head.0."),
        ("head.conv_layers.1.", "head.1."),
        ("head.final_layer.", "head.3."),
    ),
    defaults=_LANDMARKS,
    head_conv_bias=True,
    always=MIXED_1X1,
    keypoints="msra",
)
MMPOSE_0X_FACE = Family(
    "mmpose_0x_face",
    "mmpose 0.x landmarks on concatenated resolutions (keypoint_head.final_layer.0)",
    heads=("face",),
    marks=("backbone.stage2.", "keypoint_head.final_layer.0."),
    trunk_prefix="backbone.",
    renames=(("keypoint_head.final_layer.", "head."),),
    defaults=_LANDMARKS,
    head_conv_bias=True,
    always=MIXED_1X1,
    keypoints="msra",
)
MMPOSE_0X_HIGHER = Family(
    "mmpose_0x_higher",
    "mmpose 0.x HigherHRNet (keypoint_head.final_layers): heatmaps and tags at 1/4 and 1/2",
    heads=("higher",),
    marks=("backbone.stage2.", "keypoint_head.final_layers."),
    trunk_prefix="backbone.",
    renames=(
        ("keypoint_head.final_layers.", "final_layers."),
        ("keypoint_head.deconv_layers.", "deconv_layers."),
    ),
    defaults={"init": "kaiming"},
)
MMSEG = Family(
    "mmseg",
    "mmsegmentation HRNet + FCN head: logits at 1/4",
    heads=("v2",),
    marks=("backbone.stage2.", "decode_head.convs."),
    trunk_prefix="backbone.",
    renames=(
        ("decode_head.convs.0.conv.", "last_layer.0."),
        ("decode_head.convs.0.bn.", "last_layer.1."),
        ("decode_head.conv_seg.", "last_layer.3."),
    ),
    ignored=("auxiliary_head.",),
    defaults={"upsample": "bilinear", "upsample_to": "scale_then_target", "init": "kaiming"},
    head_conv_bias=False,
    always=MIXED_1X1,
    keypoints="none",
)
MMSEG_OCR = Family(
    "mmseg_ocr",
    "mmsegmentation HRNet + FCN + OCR heads: main logits at 1/4 (ocr_outputs='both' adds the auxiliary ones)",
    heads=("ocr",),
    marks=("backbone.stage2.", "decode_head.1.object_context_block."),
    trunk_prefix="backbone.",
    renames=(
        ("decode_head.0.convs.0.conv.", "aux_head.0."),
        ("decode_head.0.convs.0.bn.", "aux_head.1."),
        ("decode_head.0.conv_seg.", "aux_head.3."),
        ("decode_head.1.bottleneck.conv.", "conv3x3_ocr.0."),
        ("decode_head.1.bottleneck.bn.", "conv3x3_ocr.1."),
        *_projection_renames("query_project", "f_pixel", 2),
        *_projection_renames("key_project", "f_object", 2),
        *_projection_renames("value_project", "f_down", 1),
        *_projection_renames("out_project", "f_up", 1),
        (f"{_MM_OCR_BLOCK}bottleneck.conv.", "ocr_distri_head.conv_bn_dropout.0."),
        (f"{_MM_OCR_BLOCK}bottleneck.bn.", "ocr_distri_head.conv_bn_dropout.1.0."),
        ("decode_head.1.conv_seg.", "cls_head."),
    ),
    ignored=("auxiliary_head.",),
    defaults={
        "upsample": "bilinear",
        "upsample_to": "scale_then_target",
        "init": "kaiming",
        "ocr_outputs": "main",
    },
    head_conv_bias=False,
    always=MIXED_1X1,
    keypoints="none",
)
MMDET = Family(
    "mmdet",
    "mmdetection HRNet + HRFPN (neck.fpn_convs.N.conv): a tuple of levels",
    heads=("v2p",),
    marks=("backbone.stage2.", "neck.fpn_convs."),
    trunk_prefix="backbone.",
    ignored=DETECTORS,
    defaults={"init": "kaiming"},
    signs=(_FCOS,),
)
MMDET_1X = Family(
    "mmdet_1x",
    "mmdetection up to 1.0, HRNet + HRFPN (neck.fpn_conv.N): a tuple of levels",
    heads=("v2p",),
    marks=("backbone.stage2.", "neck.fpn_conv.", "neck.reduction_conv.conv."),
    trunk_prefix="backbone.",
    renames=FPN_CONV,
    ignored=DETECTORS,
    defaults={"init": "kaiming"},
    signs=(_FCOS,),
)
MM_BACKBONE = Family(
    "mm_backbone",
    "an OpenMMLab backbone alone (backbone.*): a list of branches",
    heads=("features",),
    marks=("backbone.stage2.",),
    trunk_prefix="backbone.",
    defaults={"init": "kaiming"},
)
