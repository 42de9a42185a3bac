"""Reader of mmpose's evaluators and test settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hrnet_fast.models.upstream.section import Section
from hrnet_fast.recipes.upstream.openmmlab_files import MM_CALLER, name_of
from hrnet_fast.recipes.upstream.openmmlab_training import unsupported


def read_pose_evaluation(
    cfg: Section, model: Mapping[str, Any], val: Mapping[str, Any] | None, notes: list[str]
) -> dict[str, Any]:
    """Return the evaluation section; arguments as in
    :func:`~hrnet_fast.recipes.upstream.openmmlab_pose.read_pose_sections`, and the data set of ``val_dataloader``.

    Raises:
        ConfigError: no evaluator, or a setting of one, that a recipe has.
    """
    test = Section(model.get("test_cfg") or {}, "model.test_cfg", MM_CALLER)
    flip = test.get("flip_test", False)
    found: dict[str, Any] = {"flip": flip, "shift": test.get("shift_heatmap", False) if flip else None}
    test.expect("flip_mode", "heatmap")
    test.no_effect("output_heatmaps")
    test.close()
    given = cfg.get("val_evaluator", ())
    metrics = {name_of(m): m for m in ([given] if isinstance(given, Mapping) else given)}
    names = ("CocoMetric", "NME", "MpiiPCKAccuracy", "PCKAccuracy")
    chosen = next((name for name in names if name in metrics), None)
    others = [name for name in metrics if name not in (chosen, "EPE")]
    if others:
        notes.append(f"val_evaluator: {', '.join(others)} {'is' if len(others) == 1 else 'are'} left out")
    if chosen is None:
        raise unsupported("val_evaluator", ", ".join(metrics) or "no metric", names)
    section = Section(metrics[chosen], f"val_evaluator ({chosen})", MM_CALLER)
    section.no_effect("type", "ann_file", "format_only", "outfile_prefix", "prefix", "collect_device", "_scope_")
    found |= _METRICS[chosen](section)
    section.close()
    if chosen == "CocoMetric" and val is not None and val.get("bbox_file"):
        root = val.get("data_root") or ""
        found["detections"] = os.path.relpath(val["bbox_file"], root) if root else val["bbox_file"]
    return found


def _coco_metric(section: Section) -> dict[str, Any]:
    for key, built in (("use_area", True), ("iou_type", "keypoints"), ("pred_converter", None), ("gt_converter", None)):
        section.expect(key, built)
    mode = section.expect("score_mode", "bbox_keypoint", "bbox")
    nms = section.expect("nms_mode", "oks_nms", "soft_oks_nms", "none")
    options = {
        "suppression": {"oks_nms": "oks", "soft_oks_nms": "soft", "none": None}[nms],
        "oks_threshold": section.get("nms_thr", 0.9),
        "score_threshold": section.get("keypoint_score_thr", 0.2),
        "rescore": mode == "bbox_keypoint",
    }
    return {"metric": "coco", "metric_options": options}


def _nme(section: Section) -> dict[str, Any]:
    mode = section.expect("norm_mode", "keypoint_distance", "use_norm_item")
    section.expect("norm_item", None, "bbox_size")
    section.expect("keypoint_indices", None)
    return {"metric": "nme", "metric_options": {"landmarks": "size"} if mode == "use_norm_item" else {}}


def _pck(section: Section) -> dict[str, Any]:
    section.expect("norm_item", "bbox")
    return {"metric": "pck", "metric_options": {"thresholds": [section.get("thr", 0.05)]}}


def _pckh(section: Section) -> dict[str, Any]:
    section.expect("thr", 0.5)
    section.expect("norm_item", "head")
    return {"metric": "pckh"}


_METRICS = {"CocoMetric": _coco_metric, "NME": _nme, "PCKAccuracy": _pck, "MpiiPCKAccuracy": _pckh}
