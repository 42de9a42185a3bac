"""Reader of mmdetection's configurations of detectors on HRNetV2p."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hrnet_fast.detection.mmdet_config import read_detector
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.section import Section
from hrnet_fast.recipes.model_options import describe_detector
from hrnet_fast.recipes.upstream.openmmlab_files import MM_CALLER, name_of
from hrnet_fast.recipes.upstream.openmmlab_training import (
    nothing,
    read_loop,
    read_optimizer,
    read_pipeline,
    read_schedule,
    unsupported,
)

_TRAIN_IMAGES = 117_266  # of COCO's train2017 that have an object


def read_detection_sections(
    cfg: Section, data: Mapping[str, Any], notes: list[str], batch: int, train_images: int | None
) -> dict[str, Any]:
    """Return all sections; arguments as in
    :func:`~hrnet_fast.recipes.upstream.openmmlab_pose.read_pose_sections`.

    Raises:
        ConfigError: something that no recipe has.
    """
    detector = read_detector(data)
    sync = detector.network.norm.kind == "syncbn"
    if sync:
        detector = detector.override(norm_kind="bn")
    loaders = {part: cfg.get(f"{part}_dataloader", None) or {} for part in ("train", "val")}
    sets = {part: loader["dataset"] for part, loader in loaders.items() if "dataset" in loader}
    steps = read_pipeline(sets["train"].get("pipeline", ()), "train_pipeline", _STEPS, notes)
    if "scales" not in steps:
        raise ConfigError(f"{MM_CALLER}: train_pipeline has no transform that resizes; a recipe needs one.")
    optimizer, loop = read_optimizer(cfg)
    run = read_loop(cfg, train_images or _TRAIN_IMAGES, batch, name_of(sets["train"]))
    schedule = read_schedule(cfg, optimizer["lr"], run.pop("total"), run.pop("by_epoch"))
    parts = {part: _data(Section(values, f"{part}_dataloader.dataset", MM_CALLER)) for part, values in sets.items()}
    parts["train"]["masks"] = steps["masks"]
    for part, values in parts.items():
        if part == "val" or not steps["semantic"]:
            values.pop("semantic", None)
        if values.get("classes") is not None and len(values["classes"]) != detector.num_classes:
            raise ConfigError(
                f"{MM_CALLER}: {part}_dataloader.dataset has {len(values['classes'])} classes and the detector "
                f"{detector.num_classes}; give one number."
            )
    notes.append("pictures of different aspects may share a batch, and the smaller ones are padded")
    _check_evaluator(cfg)
    return {
        "task": "detection",
        "model": describe_detector(detector),
        "data": {"layout": "coco_instances", "workers": loaders["train"].get("num_workers", 4), **parts},
        "inputs": {
            "picture": dataclasses.asdict(detector.picture),
            "scales": steps["scales"],
            "sampling": steps["sampling"],
            "flip_probability": steps.get("flip", 0.0),
        },
        "loss": {"kind": "detection_losses"},
        "optimizer": optimizer,
        "schedule": schedule,
        "loop": {"batch_size": batch, "sync_bn": sync, **run, **loop},
        "evaluation": {"metric": "detection_ap", "batch_size": loaders["val"].get("batch_size", 1)},
    }


def _annotations(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    section.expect("with_bbox", True)
    section.expect("poly2mask", True)
    section.no_effect("with_label", "box_type")
    found["masks"], found["semantic"] = section.get("with_mask", False), section.get("with_seg", False)


def _resize(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    section.expect("keep_ratio", True, default=False)
    section.no_effect("clip_object_border")
    found |= {"scales": [_scale(section.get("scale"))], "sampling": "list"}


def _choice(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    section.expect("keep_ratio", True, default=False)
    section.expect("resize_type", "Resize")
    found |= {"scales": [_scale(one) for one in section.get("scales")], "sampling": "list"}


def _range(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    section.expect("keep_ratio", True, default=False)
    section.expect("resize_type", "Resize")
    section.expect("ratio_range", None)
    found |= {"scales": [_scale(one) for one in section.get("scale")], "sampling": "range"}


def _scale(scale: Any) -> list[int]:
    return [max(scale), min(scale)]


def _flip(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    section.expect("direction", "horizontal")
    found["flip"] = section.get("prob", 0.0) or 0.0


_STEPS = {
    "LoadImageFromFile": nothing,
    "LoadAnnotations": _annotations,
    "Resize": _resize,
    "RandomChoiceResize": _choice,
    "RandomResize": _range,
    "RandomFlip": _flip,
    "PackDetInputs": nothing,
}


def _data(section: Section) -> dict[str, Any]:
    """Return the reader's arguments for one part."""
    if name_of(section.get("type")) != "CocoDataset":
        raise unsupported(section.path, name_of(section.get("type")), ("CocoDataset",))
    section.no_effect("data_root", "pipeline", "test_mode", "lazy_init", "serialize_data", "max_refetch")
    section.no_effect("backend_args", "_scope_", "return_classes", "seg_map_suffix")
    section.expect("indices", None)
    prefix = section.get("data_prefix")
    given = section.section("filter_cfg", {})
    found = {
        "annotations": section.get("ann_file"),
        "images": prefix["img"].rstrip("/"),
        "filter_empty": given.get("filter_empty_gt", False),
        "least_side": given.get("min_size", 0),
        "semantic": str(prefix.get("seg", "")).rstrip("/"),
    }
    given.close()
    classes = (section.get("metainfo", None) or {}).get("classes")
    section.close()
    return found if classes is None else found | {"classes": [classes] if isinstance(classes, str) else list(classes)}


def _check_evaluator(cfg: Section) -> None:
    given = cfg.get("val_evaluator", ())
    for values in [given] if isinstance(given, Mapping) else given:
        if name_of(values) != "CocoMetric":
            raise unsupported("val_evaluator", name_of(values), ("CocoMetric",))
        section = Section(values, "val_evaluator (CocoMetric)", MM_CALLER)
        section.no_effect("type", "ann_file", "format_only", "backend_args", "classwise", "outfile_prefix", "prefix")
        section.no_effect("_scope_", "collect_device", "sort_categories", "use_mp_eval")
        section.expect("metric", "bbox", "segm", ["bbox"], ["bbox", "segm"], ("bbox", "segm"))
        for key, built in (("proposal_nums", (100, 300, 1000)), ("iou_thrs", None), ("metric_items", None)):
            section.expect(key, built)
        section.close()
