"""Conversion of mmdetection's configurations of detectors (2.5 and later, 3.x) to a :class:`DetectorConfig`.

As for networks (:mod:`hrnet_fast.models.upstream`), each key is read, is known to have no effect, or raises an error.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hrnet_fast.config import HRNetConfig
from hrnet_fast.config.fields import is_int
from hrnet_fast.detection.config_parts import AnchorConfig, RPNConfig
from hrnet_fast.detection.defaults import default_heads
from hrnet_fast.detection.detector_config import DetectorConfig, PictureConfig
from hrnet_fast.detection.head_configs import FCOSConfig
from hrnet_fast.detection.mmdet_parts import (
    accept_layers,
    is_legacy,
    read_assign,
    read_box_loss,
    read_proposals,
    read_sample,
    read_selection,
    read_stds,
    read_weight,
)
from hrnet_fast.detection.mmdet_roi import read_roi
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream import Source, read_configuration
from hrnet_fast.models.upstream.config_files import read_source
from hrnet_fast.models.upstream.description import check_int
from hrnet_fast.models.upstream.openmmlab_parts import registered_name
from hrnet_fast.models.upstream.section import Section

_KINDS = {"StandardRoIHead": "rcnn", "CascadeRoIHead": "cascade_rcnn", "HybridTaskCascadeRoIHead": "htc"}
_INFINITE = 1e8  # FCOS's last range ends here
_RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, _INFINITE))


def read_detector(cfg: Source) -> DetectorConfig:
    """Return the detector that a configuration of mmdetection describes.

    Args:
        cfg: a ``.py`` path (read by mmengine), an mmengine ``Config``, or the mapping of a file or of its ``model``.

    Training settings that it lacks (``train_cfg=None``) are those that mmdetection ships.

    Raises:
        ConfigError: a setting cannot be built, is unknown, or the configuration describes no detector on HRNetV2p.
    """
    data = read_source(cfg)
    network = read_configuration(data, upstream="mmdet").config
    try:
        return _read(data, network)
    except ConfigError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ConfigError(f"from_config: the configuration lacks or mistypes {error}.") from error


def _read(data: Mapping[str, Any], network: HRNetConfig) -> DetectorConfig:
    model = Section(data.get("model", data))
    train, test = (_read_settings(model, data, key) for key in ("train_cfg", "test_cfg"))
    if model.values.get("roi_head") is None:
        if model.values.get("bbox_head") is None:
            raise ConfigError("from_config: a detector has rpn_head and roi_head, or bbox_head (FCOS); neither given.")
        head = model.section("bbox_head")
        classes = check_int(head.get("num_classes"), head.name("num_classes"))
        fcos = _read_fcos(head, test, network)
        train.no_effect("assigner", "sampler", "allowed_border", "pos_weight", "debug")  # FCOS assigns by its ranges
        train.close()
        picture = _read_picture(model, data, default_heads("fcos")["picture"])
        return DetectorConfig(network, classes, fcos=fcos, picture=picture)
    roi_head = model.section("roi_head")
    kind = _KINDS[registered_name(roi_head, *_KINDS)]
    if kind != "htc" and roi_head.values.get("mask_head") is not None:
        kind = kind.replace("rcnn", "mask_rcnn")
    defaults = default_heads("faster_rcnn" if kind == "rcnn" else kind)
    rpn = _read_rpn(model.section("rpn_head"), defaults["rpn"], train, test, network)
    roi, classes = read_roi(roi_head, defaults["roi"], train, test, network)
    train.no_effect("rpn", "rpn_proposal", "rcnn")  # each was read if it was given
    train.close()
    test.no_effect("rpn", "rcnn")
    test.close()
    picture = _read_picture(model, data, PictureConfig())
    legacy = is_legacy(model.values)
    if len(legacy) != 1:
        raise ConfigError(
            "from_config: of LegacyAnchorGenerator, LegacyDeltaXYWHBBoxCoder and RoIAlign with aligned=False, accepted "
            "are all or none."
        )
    return DetectorConfig(network, classes, rpn=rpn, roi=roi, picture=picture, legacy=legacy.pop())


def _read_settings(model: Section, data: Mapping[str, Any], key: str) -> Section:
    """Return ``train_cfg`` or ``test_cfg`` of the model; early files of 2.x have them beside it."""
    given, beside = model.values.get(key), data.get(key) or {}
    if given is None and not ("type" in beside or "by_epoch" in beside):  # those are loops of 3.x
        given = beside
    return Section(given or {}, key)


def _read_picture(model: Section, data: Mapping[str, Any], default: PictureConfig) -> PictureConfig:
    """Return how pictures are prepared: of ``data_preprocessor`` (3.x) or ``img_norm_cfg`` (2.x), and the test size.

    The preprocessor pads to multiples of 1 where it does not say otherwise; in 2.x a step of the pipeline pads.
    """
    changes: dict[str, Any] = {}
    steps = list(_steps(data.get("test_pipeline") or ()))
    pads = [step for step in steps if _step_name(step) == "Pad"]
    preprocessor = model.values.get("data_preprocessor")
    given = preprocessor or data.get("img_norm_cfg")
    if given is not None:
        values = Section(given, "data_preprocessor")
        values.no_effect(
            "type", "pad_mask", "pad_seg", "seg_pad_value", "mask_pad_value", "batch_augments", "boxtype2tensor"
        )
        rgb = values.get("bgr_to_rgb", values.get("to_rgb", False))
        changes = {"mean": values.get("mean"), "std": values.get("std"), "channel_order": "rgb" if rgb else "bgr"}
        if preprocessor:
            changes["divisor"] = values.get("pad_size_divisor", 1)
        elif steps:
            changes["divisor"] = _read_pad(pads)
        values.expect("rgb_to_bgr", False)
        values.close()
    if preprocessor and pads:
        raise ConfigError("from_config: test_pipeline has Pad; accepted is data_preprocessor's pad_size_divisor.")
    sizes = [_read_resize(step) for step in steps if "resize" in _step_name(step).lower()]
    if len(sizes) > 1:
        raise ConfigError(f"from_config: test_pipeline resizes {len(sizes)} times; accepted is one step.")
    return dataclasses.replace(default, **changes, **(sizes[0] if sizes else {}))


def _steps(pipeline: Sequence[Any]) -> Iterator[Section]:
    """Yield the steps; those of 2.x have their scale from ``MultiScaleFlipAug``, and keep the ratio."""
    for values in pipeline:
        step = Section(values, "test_pipeline")
        if _step_name(step) == "MultiScaleFlipAug":
            step.expect("flip", False)
            scales = {"scale": step.get("img_scale", None), "scale_factor": step.get("scale_factor", None)}
            yield from _steps([{"keep_ratio": True, **scales, **inner} for inner in step.get("transforms")])
        else:
            yield step


def _read_pad(pads: Sequence[Section]) -> int:
    """Return the divisor of the one step that pads; 1 without one."""
    if not pads:
        return 1
    if len(pads) > 1 or pads[0].get("size", None) is not None:
        raise ConfigError(
            f"from_config: test_pipeline has {[dict(p.values) for p in pads]}; accepted is one Pad with size_divisor."
        )
    return check_int(pads[0].get("size_divisor"), "test_pipeline.size_divisor")


def _step_name(step: Section) -> str:
    return str(step.get("type", "")).rpartition(".")[2]


def _read_resize(step: Section) -> dict[str, Any]:
    scale = step.get("scale", None)
    scale = scale[0] if isinstance(scale, (list, tuple)) and len(scale) == 1 else scale
    one = isinstance(scale, (list, tuple)) and len(scale) == 2 and all(map(is_int, scale))
    keeps = step.get("keep_ratio", False) is True and step.get("scale_factor", None) is None
    if not (_step_name(step) == "Resize" and keeps and one):
        raise ConfigError(
            f"from_config: test_pipeline has {dict(step.values)}; accepted is Resize with keep_ratio=True and one "
            "scale (width, height)."
        )
    return {"long_side": max(scale), "short_side": min(scale)}


def _read_rpn(head: Section, default: RPNConfig, train: Section, test: Section, network: HRNetConfig) -> RPNConfig:
    registered_name(head, "RPNHead")
    accept_layers(head, network.head.channels)
    head.expect("num_convs", 1)
    head.expect("num_classes", 1)
    head.expect("reg_decoded_bbox", False)
    given = head.section("anchor_generator")
    offset = 0.5 if registered_name(given, "AnchorGenerator", "LegacyAnchorGenerator").startswith("Legacy") else 0.0
    given.expect("center_offset", offset, default=0.0)
    for key, value in (("base_sizes", None), ("scale_major", True), ("centers", None)):
        given.expect(key, value)
    anchors = AnchorConfig(given.get("scales"), given.get("ratios"), given.get("strides"))
    given.close()
    found = dataclasses.replace(
        default,
        channels=head.get("feat_channels", 256),
        anchors=anchors,
        stds=read_stds(head.section("bbox_coder")),
        class_weight=read_weight(head.section("loss_cls"), "CrossEntropyLoss", use_sigmoid=True),
        box_loss=read_box_loss(head.section("loss_bbox")),
        test_proposals=read_proposals(test.section("rpn")),
    )
    head.close()
    if train.values.get("rpn") is not None:
        settings = train.section("rpn")
        settings.no_effect("debug")
        settings.expect("pos_weight", -1)
        found = dataclasses.replace(
            found,
            assign=read_assign(settings.section("assigner")),
            sample=read_sample(settings.section("sampler")),
            allowed_border=settings.get("allowed_border"),
        )
        settings.close()
    if any(train.values.get(key) is not None for key in ("rpn", "rpn_proposal")):
        found = dataclasses.replace(found, train_proposals=read_proposals(train.section("rpn_proposal")))
    return found


def _read_fcos(head: Section, test: Section, network: HRNetConfig) -> FCOSConfig:
    registered_name(head, "FCOSHead")
    accept_layers(head, network.head.channels, {"type": "GN", "num_groups": 32, "requires_grad": True})
    for key in ("center_sampling", "norm_on_bbox", "centerness_on_reg", "dcn_on_last_conv"):
        head.expect(key, False)
    head.no_effect("center_sample_radius", "num_classes")
    head.expect("conv_bias", "auto", False, default="auto")  # no bias before a normalisation
    head.expect("cls_predictor_cfg", None)
    if head.values.get("bbox_coder") is not None:
        coder = head.section("bbox_coder")
        registered_name(coder, "DistancePointBBoxCoder")
        coder.expect("clip_border", True)
        coder.close()
    head.no_effect("bbox_coder")
    strides = tuple(head.get("strides", (4, 8, 16, 32, 64)))
    ranges = [tuple(one) for one in head.get("regress_ranges", _RANGES)]
    ends = [-1, *(high for _, high in ranges[:-1]), _INFINITE]
    if ranges != list(itertools.pairwise(ends)):
        raise ConfigError(
            f"from_config: {head.name('regress_ranges')} is {ranges}; accepted are ranges that follow each other from "
            "-1 to 1e8."
        )
    focal = head.section("loss_cls", {"type": "FocalLoss", "use_sigmoid": True})
    registered_name(focal, "FocalLoss")
    focal.expect("activated", False)
    shape = {"focal_alpha": focal.get("alpha", 0.25), "focal_gamma": focal.get("gamma", 2.0)}
    box = head.section("loss_bbox", {"type": "IoULoss"})
    for key, value in (("linear", False), ("eps", 1e-6), ("mode", "log")):
        box.expect(key, value)
    center = head.section("loss_centerness", {"type": "CrossEntropyLoss", "use_sigmoid": True})
    found = FCOSConfig(
        channels=head.get("feat_channels", 256),
        num_convs=head.get("stacked_convs", 4),
        strides=strides,
        ranges=tuple(ends[1:-1]),
        class_weight=read_weight(focal, "FocalLoss", use_sigmoid=True),
        box_weight=read_weight(box, "IoULoss"),
        centerness_weight=read_weight(center, "CrossEntropyLoss", use_sigmoid=True),
        groups=(head.values.get("norm_cfg") or {}).get("num_groups", 32),
        before_nms=test.get("nms_pre"),
        least_size=test.get("min_bbox_size"),
        **shape,
        **read_selection(test),
    )
    test.close()
    head.close()
    return found
