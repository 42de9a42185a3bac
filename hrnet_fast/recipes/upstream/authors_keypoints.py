"""Readers of the authors' pose and face configurations."""

from __future__ import annotations

import os
from typing import Any

from hrnet_fast.models.upstream.section import Section
from hrnet_fast.recipes.upstream.authors_files import Defaults, read_training

_POSE = Defaults(gpus=1, batch_size=32, epochs=140, lr=1e-3, weight_decay=1e-4, momentum=0.9, steps=(90, 110))
_FACE = Defaults(gpus=4, batch_size=16, epochs=60, lr=1e-4, weight_decay=0.0, momentum=0.0, steps=(30, 50))
# The authors' COCO code, for LOSS.USE_DIFFERENT_JOINTS_WEIGHT.
_COCO_WEIGHTS = (1, 1, 1, 1, 1, 1, 1, 1.2, 1.2, 1.5, 1.5, 1, 1, 1.2, 1.2, 1.5, 1.5)


def read_pose(cfg: Section, notes: list[str]) -> dict[str, Any]:
    """Return the sections of a pose configuration, without the model (pose repository, ``lib/config/default.py``)."""
    dataset, train, test = (cfg.section(name, {}) for name in ("DATASET", "TRAIN", "TEST"))
    loss, model = cfg.section("LOSS", {}), cfg.section("MODEL")
    kind = dataset.expect("DATASET", "coco", "mpii", default="mpii")
    dataset.no_effect("ROOT", "HYBRID_JOINTS_TYPE")
    dataset.expect("SELECT_DATA", False)
    dataset.expect("DATA_FORMAT", "jpg", "png")
    dataset.expect("COLOR_RGB", True, default=False)
    model.expect("TARGET_TYPE", "gaussian")
    width, height = model.get("IMAGE_SIZE", (256, 256))
    maps = model.get("HEATMAP_SIZE", (64, 64))
    weighted = loss.get("USE_DIFFERENT_JOINTS_WEIGHT", False)
    inputs = {
        "input_size": [height, width],
        "heatmap_size": [maps[1], maps[0]],
        "sigma": model.get("SIGMA", 2),
        "keypoint_weights": _COCO_WEIGHTS if weighted and kind == "coco" else None,
        "augmentation": {
            "scale": dataset.get("SCALE_FACTOR", 0.25),
            "rotation": dataset.get("ROT_FACTOR", 30),
            "flip_probability": 0.5 if dataset.get("FLIP", True) else 0.0,
            "half_body_probability": max(0.0, dataset.get("PROB_HALF_BODY", 0.0)),
            "half_body_keypoints": dataset.get("NUM_JOINTS_HALF_BODY", 8),
        },
    }
    if loss.get("USE_OHKM", False):
        notes.append("LOSS.USE_OHKM=true is left out: the authors' train.py always has the plain loss")
    loss.no_effect("TOPK")
    recipe = {
        "task": "pose",
        "data": _pose_data(kind, dataset),
        "inputs": inputs,
        "loss": {"kind": "keypoint_mse", "weighted": loss.get("USE_TARGET_WEIGHT", True)},
        **read_training(cfg, train, notes, _POSE),
        "evaluation": _pose_evaluation(kind, test, dataset, notes),
    }
    for section in (dataset, train, test, loss):
        section.close()
    return recipe


def _pose_data(kind: str, dataset: Section) -> dict[str, Any]:
    sets = {"train": dataset.get("TRAIN_SET", "train"), "val": dataset.get("TEST_SET", "valid")}
    if kind == "mpii":
        return {"layout": "mpii", **{part: {"split": name} for part, name in sets.items()}}
    parts = {
        part: {"annotations": f"annotations/person_keypoints_{name}.json", "images": f"images/{name}"}
        for part, name in sets.items()
    }
    return {"layout": "coco_keypoints", **parts}


def _pose_evaluation(kind: str, test: Section, dataset: Section, notes: list[str]) -> dict[str, Any]:
    test.no_effect("MODEL_FILE", "NMS_THRE", "BBOX_THRE")  # no code reads the last two
    test.no_effect("BATCH_SIZE_PER_GPU")
    test.expect("POST_PROCESS", True, default=False)
    flip = test.get("FLIP_TEST", False)
    found = {"flip": flip, "shift": test.get("SHIFT_HEATMAP", False) if flip else None}
    keys = ("USE_GT_BBOX", "COCO_BBOX_FILE", "IMAGE_THRE", "SOFT_NMS", "OKS_THRE", "IN_VIS_THRE")
    if kind == "mpii":
        test.no_effect(*keys)
        return {"metric": "pckh", **found}
    if not test.get("USE_GT_BBOX", False):
        test.expect("IMAGE_THRE", 0.0, default=0.1)
        found["detections"] = _below(test.get("COCO_BBOX_FILE", ""), dataset.get("ROOT", ""))
    elif test.get("COCO_BBOX_FILE", ""):
        notes.append(
            "TEST.USE_GT_BBOX=true: annotated boxes are evaluated; published figures are of a detector's "
            f"(evaluation.detections={_below(test.get('COCO_BBOX_FILE'), dataset.get('ROOT', ''))})"
        )
    test.no_effect("IMAGE_THRE")
    options = {
        "suppression": "soft" if test.get("SOFT_NMS", False) else "oks",
        "oks_threshold": test.get("OKS_THRE", 0.5),
        "score_threshold": test.get("IN_VIS_THRE", 0.0),
    }
    return {"metric": "coco", **found, "metric_options": options}


def _below(path: str, root: str) -> str:
    """Return a path of a configuration relative to its data folder."""
    return os.path.relpath(path, root) if root else path


def read_face(cfg: Section, notes: list[str]) -> dict[str, Any]:
    """Return the sections of a face configuration, without the model (face repository, ``lib/config/defaults.py``)."""
    dataset, train, test, model = (cfg.section(name, {}) for name in ("DATASET", "TRAIN", "TEST", "MODEL"))
    kind = dataset.expect("DATASET", "WFLW", "300W", "COFW", "AFLW", default="AFLW")
    model.expect("TARGET_TYPE", "Gaussian")
    test.no_effect("BATCH_SIZE_PER_GPU")
    width, height = model.get("IMAGE_SIZE", (256, 256))
    maps = model.get("HEATMAP_SIZE", (64, 64))
    inputs: dict[str, Any] = {
        "input_size": [height, width],
        "heatmap_size": [maps[1], maps[0]],
        "method": "face",
        "sigma": model.get("SIGMA", 1.5),
        "augmentation": {
            "distribution": "uniform",
            "scale": dataset.get("SCALE_FACTOR", 0.25),
            "rotation": dataset.get("ROT_FACTOR", 30),
            "flip_probability": 0.5 if dataset.get("FLIP", True) else 0.0,
            "half_body_probability": 0.0,
        },
    }
    recipe = {
        "task": "landmarks",
        "data": _face_data(kind, dataset, notes),
        "inputs": inputs,
        "loss": {"kind": "landmark_mse"},
        **read_training(cfg, train, notes, _FACE),
        "evaluation": {
            "metric": "nme",
            "whole_pixels": True,
            "metric_options": {"landmarks": "size"} if kind == "AFLW" else {},
        },
    }
    notes.append("the authors choose the best epoch on the test set, and so does evaluation.best")
    for section in (dataset, train, test):
        section.close()
    return recipe


def _face_data(kind: str, dataset: Section, notes: list[str]) -> dict[str, Any]:
    """Return the data section; its folder is that of the training list."""
    lists = {"train": dataset.get("TRAINSET"), "val": dataset.get("TESTSET")}
    folder = os.path.dirname(os.path.normpath(lists["train"]))
    images = _below(os.path.normpath(dataset.get("ROOT", "") or folder), folder)
    notes.append(f"the data folder (--data) is the one that the file calls {folder}")
    if kind == "COFW":  # its files hold the pictures
        return {"layout": "cofw", **{part: {"file": _below(path, folder)} for part, path in lists.items()}}
    points = {"points": kind.lower(), "images": images}
    return {"layout": "face_landmarks", **{k: {"table": _below(v, folder), **points} for k, v in lists.items()}}
