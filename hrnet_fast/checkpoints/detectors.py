"""Checkpoint families of mmdetection's detectors on HRNetV2p, of its versions 2.x and 3.x, which share their names."""

from hrnet_fast.checkpoints.family import Family

_PYRAMID = ("backbone.stage2.", "neck.fpn_convs.")
_TWO_STAGES = (*_PYRAMID, "rpn_head.rpn_conv.", "rpn_head.rpn_cls.", "rpn_head.rpn_reg.")
_ONE_BOX = (*_TWO_STAGES, "roi_head.bbox_head.fc_cls.", "roi_head.bbox_head.fc_reg.")
_BOXES = (*_TWO_STAGES, "roi_head.bbox_head.0.fc_cls.", "roi_head.bbox_head.0.fc_reg.")
_DEFAULTS = {"init": "kaiming", "norm_eval": True}


def _family(kind: str, description: str, marks: tuple[str, ...], stride: int = 1) -> Family:
    return Family(
        f"mmdet_{kind}",
        f"mmdetection 2.x and 3.x {description}: boxes, scores and labels of each image",
        heads=("v2p",),
        marks=marks,
        trunk_prefix="backbone.",
        defaults=_DEFAULTS | {"pyramid_stride": stride},
        detector=kind,
    )


# Special cases first: a Hybrid Task Cascade has the keys of a Cascade Mask R-CNN too.
DETECTOR_FAMILIES = (
    _family("htc", "Hybrid Task Cascade on HRNetV2p, with masks", (*_BOXES, "roi_head.mask_head.1.conv_res.")),
    _family("cascade_mask_rcnn", "Cascade Mask R-CNN on HRNetV2p, with masks", (*_BOXES, "roi_head.mask_head.0.")),
    _family("cascade_rcnn", "Cascade R-CNN on HRNetV2p", _BOXES),
    _family("mask_rcnn", "Mask R-CNN on HRNetV2p, with masks", (*_ONE_BOX, "roi_head.mask_head.conv_logits.")),
    _family("faster_rcnn", "Faster R-CNN on HRNetV2p", _ONE_BOX),
    _family(
        "fcos",
        "FCOS on HRNetV2p",
        (*_PYRAMID, "bbox_head.cls_convs.", "bbox_head.conv_cls.", "bbox_head.conv_reg.", "bbox_head.conv_centerness."),
        stride=2,
    ),
)
