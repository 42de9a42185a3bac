"""Reader of mmdetection's RoI heads: one stage, cascade, and Hybrid Task Cascade."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hrnet_fast.config import HRNetConfig
from hrnet_fast.detection.head_configs import BoxStageConfig, MaskConfig, RoIConfig, SemanticConfig
from hrnet_fast.detection.mmdet_parts import (
    accept_layers,
    read_assign,
    read_box_loss,
    read_sample,
    read_selection,
    read_stds,
    read_weight,
)
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.description import check_int
from hrnet_fast.models.upstream.openmmlab_parts import registered_name
from hrnet_fast.models.upstream.section import Section


def read_roi(
    head: Section, default: RoIConfig, train: Section, test: Section, network: HRNetConfig
) -> tuple[RoIConfig, int]:
    """Return the second part of a two-stage detector, and its number of classes."""
    width = network.head.channels
    head.no_effect("type", "init_cfg", "train_cfg", "test_cfg", "_scope_", "num_stages", "stage_loss_weights")
    head.expect("shared_head", None)
    rows = _rows(head, "bbox_head")
    weights = list(head.values.get("stage_loss_weights", (1,)))
    settings = _train_sections(train, len(rows))
    if len(weights) != len(rows) or head.values.get("num_stages", len(rows)) != len(rows):
        raise ConfigError(
            f"from_config: roi_head has {len(rows)} bbox_head, num_stages={head.values.get('num_stages')} and "
            f"{len(weights)} stage_loss_weights; give as many of each."
        )
    pool, strides, finest = _read_extractor(head, "bbox_roi_extractor", width)
    stages, classes = [], set()
    for row, weight, setting, before in zip(rows, weights, settings, default.stages, strict=True):
        classes.add(check_int(row.get("num_classes", 80), row.name("num_classes")))
        stages.append(_read_stage(row, before, weight, setting, width, pool))
    rcnn = test.section("rcnn")
    changes: dict[str, Any] = {"mask": None, "semantic": None, **read_selection(rcnn)}
    changes["mask_threshold"] = rcnn.get("mask_thr_binary", 0.5)
    rcnn.close()
    if head.values.get("mask_head") is not None:
        flow = head.get("mask_info_flow", True) if default.interleaved else False
        changes["mask"] = _read_masks(head, width, strides, finest, flow, classes)
    if default.interleaved:
        changes["interleaved"] = head.get("interleaved", True)
        head.expect("semantic_fusion", ("bbox", "mask"))
        if head.values.get("semantic_head") is not None:
            changes["semantic"] = _read_semantic(head, network, strides)
    head.no_effect("mask_head", "mask_roi_extractor", "semantic_head", "semantic_roi_extractor")
    head.close()
    if len(classes) != 1:
        raise ConfigError(f"from_config: the heads have {sorted(classes)} classes; all need as many.")
    made = dataclasses.replace(
        default, stages=tuple(stages), strides=strides, pool_size=pool, finest_size=finest, **changes
    )
    return made, classes.pop()


def _rows(head: Section, key: str) -> list[Section]:
    """Return one section for each stage, of a list or of a mapping for all."""
    given = head.get(key)
    rows = [given] if isinstance(given, Mapping) else list(given)
    return [Section(row, f"{head.name(key)}[{i}]" if len(rows) > 1 else head.name(key)) for i, row in enumerate(rows)]


def _train_sections(train: Section, stages: int) -> list[Section | None]:
    given = train.values.get("rcnn")
    if given is None:
        return [None] * stages
    rows = [given] if isinstance(given, Mapping) else list(given)
    return [Section(row, f"train_cfg.rcnn[{i}]") for i, row in enumerate(rows)]


def _read_extractor(head: Section, key: str, width: int) -> tuple[int, tuple[int, ...], float]:
    """Return pool size, strides and finest size of ``SingleRoIExtractor``, the same in every stage."""
    found = set()
    for section in _rows(head, key):
        registered_name(section, "SingleRoIExtractor")
        section.no_effect("init_cfg")
        section.expect("out_channels", width)
        layer = section.section("roi_layer")
        registered_name(layer, "RoIAlign")
        layer.expect("pool_mode", "avg")
        layer.expect("sampling_ratio", 0 if layer.expect("aligned", True, False) else 2, default=0)
        size = check_int(layer.get("output_size"), layer.name("output_size"))
        layer.close()
        found.add((size, tuple(section.get("featmap_strides")), section.get("finest_scale", 56)))
        section.close()
    if len(found) != 1:
        raise ConfigError(f"from_config: {head.name(key)} needs the same settings in every stage.")
    return found.pop()


def _read_stage(
    head: Section, default: BoxStageConfig, weight: float, settings: Section | None, width: int, pool: int
) -> BoxStageConfig:
    registered_name(head, "Shared2FCBBoxHead")
    accept_layers(head, width)
    head.expect("roi_feat_size", pool, default=7)
    head.expect("with_avg_pool", False)
    head.expect("reg_decoded_bbox", False)
    found = dataclasses.replace(
        default,
        fc_channels=head.get("fc_out_channels", 1024),
        class_agnostic=head.get("reg_class_agnostic", False),
        stds=read_stds(head.section("bbox_coder")),
        class_weight=read_weight(head.section("loss_cls"), "CrossEntropyLoss", use_sigmoid=False),
        box_loss=read_box_loss(head.section("loss_bbox")),
        weight=weight,
    )
    head.close()
    if settings is not None:
        settings.no_effect("debug", "mask_size")  # masks have twice the pooled size, as their head's outputs
        settings.expect("pos_weight", -1)
        assign, sample = read_assign(settings.section("assigner")), read_sample(settings.section("sampler"))
        found = dataclasses.replace(found, assign=assign, sample=sample)
        settings.close()
    return found


def _read_masks(
    head: Section, width: int, strides: tuple[int, ...], finest: float, flow: bool, classes: set[int]
) -> MaskConfig:
    pool, *rest = _read_extractor(head, "mask_roi_extractor", width)
    if rest != [strides, finest]:
        raise ConfigError(
            "from_config: mask_roi_extractor and bbox_roi_extractor need the same levels and finest_scale."
        )
    found = set()
    for stage, row in enumerate(_rows(head, "mask_head")):
        name = registered_name(row, "FCNMaskHead", "HTCMaskHead")
        accept_layers(row, width)
        row.expect("conv_kernel_size", 3)
        row.expect("roi_feat_size", pool, default=14)
        row.expect("upsample_cfg", {"type": "deconv", "scale_factor": 2})
        if name == "HTCMaskHead":
            row.expect("with_conv_res", flow and stage > 0, default=True)
        classes.add(check_int(row.get("num_classes", 80), row.name("num_classes")))
        found.add(
            MaskConfig(
                channels=row.get("conv_out_channels", 256),
                num_convs=row.get("num_convs", 4),
                pool_size=pool,
                class_agnostic=row.get("class_agnostic", False),
                weight=read_weight(row.section("loss_mask"), "CrossEntropyLoss", use_mask=True),
                information_flow=flow,
            )
        )
        row.close()
    if len(found) != 1:
        raise ConfigError("from_config: roi_head.mask_head needs the same layers and loss in every stage.")
    return found.pop()


def _read_semantic(head: Section, network: HRNetConfig, strides: tuple[int, ...]) -> SemanticConfig:
    width, levels = network.head.channels, network.head.num_levels
    section = head.section("semantic_head")
    registered_name(section, "FusedSemanticHead")
    accept_layers(section, width)
    level = check_int(section.get("fusion_level"), section.name("fusion_level"))
    section.expect("num_ins", levels)
    section.expect("seg_scale_factor", 1 / (strides[0] * 2**level), default=1 / 8)
    section.expect("ignore_label", None)
    section.expect("loss_weight", None)
    loss = section.section("loss_seg")
    ignore = loss.get("ignore_index")
    pool, used, _ = _read_extractor(head, "semantic_roi_extractor", width)
    if used != (strides[0] * 2**level,):
        raise ConfigError(f"from_config: semantic_roi_extractor has strides {used}; fusion_level={level} has another.")
    found = SemanticConfig(
        num_classes=section.get("num_classes", 183),
        channels=section.get("conv_out_channels", 256),
        num_convs=section.get("num_convs", 4),
        level=level,
        pool_size=pool,
        ignore_index=ignore,
        weight=read_weight(loss, "CrossEntropyLoss"),
    )
    section.close()
    return found
