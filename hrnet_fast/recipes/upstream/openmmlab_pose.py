"""Reader of mmpose's top-down configurations with heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.section import Section
from hrnet_fast.recipes.upstream.openmmlab_files import MM_CALLER, name_of
from hrnet_fast.recipes.upstream.openmmlab_metrics import read_pose_evaluation
from hrnet_fast.recipes.upstream.openmmlab_training import (
    nothing,
    read_optimizer,
    read_pipeline,
    read_schedule,
    read_statistics,
    unsupported,
)

# Data sets in COCO's format, with their keypoints in the file's category.
_COCO_STYLE = (
    *("CocoDataset", "CrowdPoseDataset", "AicDataset", "PoseTrack18Dataset", "HumanArtDataset", "ExlposeDataset"),
    *("AnimalPoseDataset", "AP10KDataset", "AnimalKingdomDataset", "OneHand10KDataset", "Rhd2DDataset"),
    *("DeepFashionDataset", "BaseCocoStyleDataset"),
)
_FACES = {"WFLWDataset": "wflw", "Face300WDataset": "300w", "COFWDataset": "cofw", "AFLWDataset": "aflw"}
_DATASET_KEYS = ("type", "data_root", "data_mode", "ann_file", "data_prefix", "pipeline", "test_mode", "bbox_file")


def read_pose_sections(
    cfg: Section, data: Mapping[str, Any], notes: list[str], batch: int, method: str
) -> dict[str, Any]:
    """Return all sections but the model.

    Args:
        cfg: the sections of the file.
        data: the file.
        notes: gets messages.
        batch: the batch size.
        method: of the heatmaps.

    Raises:
        ConfigError: something that no recipe has.
    """
    train, val = _dataset(cfg, "train_dataloader"), _dataset(cfg, "val_dataloader")
    if train is None:
        raise ConfigError(f"{MM_CALLER}: train_dataloader.dataset is missing.")
    optimizer, loop = read_optimizer(cfg)
    epochs, interval = _epochs(cfg)
    steps = read_pipeline(train.get("pipeline", ()), "train_pipeline", _STEPS, notes)
    codec = _codec(data, steps)
    face = _FACES.get(name_of(train))
    inputs = {
        "input_size": codec["input_size"],
        "heatmap_size": codec["heatmap_size"],
        "sigma": codec["sigma"],
        "method": method,
        "padding": steps.get("padding", 1.25),
        "augmentation": _augmentation(steps),
        "colors": steps.get("colors"),
        **read_statistics(data["model"]),
    }
    return {
        "task": "landmarks" if face else "pose",
        "data": _data(train, val, face, cfg, notes),
        "inputs": inputs,
        "loss": _loss(data["model"]),
        "optimizer": optimizer,
        "schedule": read_schedule(cfg, optimizer["lr"], epochs, True),
        "loop": {"epochs": epochs, "batch_size": batch, "evaluate_every": interval, **loop},
        "evaluation": read_pose_evaluation(cfg, data["model"], val, notes),
    }


def _dataset(cfg: Section, loader: str) -> Mapping[str, Any] | None:
    found = (cfg.get(loader, None) or {}).get("dataset")
    return found if isinstance(found, Mapping) else None


def _epochs(cfg: Section) -> tuple[int, int]:
    section = cfg.section("train_cfg")
    section.expect("by_epoch", True)
    section.expect("type", "EpochBasedTrainLoop")
    section.expect("dynamic_intervals", None)
    section.no_effect("val_begin")
    found = section.get("max_epochs"), section.get("val_interval", 1)
    section.close()
    return found


def _half_body(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    for key, built in (("min_upper_keypoints", 2), ("min_lower_keypoints", 3)):
        section.expect(key, built)
    found["half_body"] = {
        "half_body_probability": section.get("prob", 0.3),
        "half_body_keypoints": section.get("min_total_keypoints", 9) - 1,
        "half_body_padding": section.get("padding", 1.5),
        "upper_body_probability": section.get("upper_prioritized_prob", 0.7),
    }


def _box_transform(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    least, most = section.get("scale_factor", (0.5, 1.5))
    section.expect("scale_prob", 1.0, 1)
    if abs(least + most - 2) > 1e-6:
        raise ConfigError(f"{MM_CALLER}: {section.path}: scale_factor {(least, most)} is not symmetric around 1.")
    found["box"] = {
        "scale": round(most - 1, 6),
        "rotation": section.get("rotate_factor", 80.0),
        "rotation_probability": section.get("rotate_prob", 0.6),
        "shift": section.get("shift_factor", 0.16),
        "shift_probability": section.get("shift_prob", 0.3),
    }


def _flip(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    section.expect("direction", "horizontal")
    found["flip"] = section.get("prob", 0.5)


def _box(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    found["padding"] = section.get("padding", 1.25)


def _affine(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    found["size"] = tuple(section.get("input_size"))
    section.no_effect("input_padding")
    found["udp"] = section.get("use_udp", False)


def _target(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    found["encoder"] = section.get("encoder")
    for key in ("multilevel", "use_dataset_keypoint_weights"):
        section.expect(key, False)
    section.no_effect("target_type")


def _photometric(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    for key, built in (("brightness_delta", 32), ("contrast_range", (0.5, 1.5)), ("saturation_range", (0.5, 1.5))):
        section.expect(key, built)
    section.expect("hue_delta", 18)
    found["colors"] = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.1, "probability": 0.5}
    notes.append("PhotometricDistortion: its four changes are drawn for the same half of the pictures")


_STEPS = {
    "LoadImage": nothing,
    "GetBBoxCenterScale": _box,
    "RandomFlip": _flip,
    "RandomHalfBody": _half_body,
    "RandomBBoxTransform": _box_transform,
    "TopdownAffine": _affine,
    "PhotometricDistortion": _photometric,
    "GenerateTarget": _target,
    "PackPoseInputs": nothing,
}


def _augmentation(steps: Mapping[str, Any]) -> dict[str, Any]:
    nowhere = {"scale": 0.0, "rotation": 0.0, "rotation_probability": 0.0, "shift": 0.0}
    return {
        "distribution": "truncated_normal",
        "flip_probability": steps.get("flip", 0.0),
        **steps.get("half_body", {"half_body_probability": 0.0}),
        **steps.get("box", nowhere),
    }


def _codec(data: Mapping[str, Any], steps: Mapping[str, Any]) -> dict[str, Any]:
    """Return sizes as (H, W), and sigma, of the encoder of the targets."""
    values = steps.get("encoder") or (data["model"].get("head") or {}).get("decoder")
    if not isinstance(values, Mapping):
        raise ConfigError(f"{MM_CALLER}: GenerateTarget has no encoder; accepted are MSRAHeatmap and UDPHeatmap.")
    if steps.get("udp", False) != (name_of(values) == "UDPHeatmap"):
        raise ConfigError(f"{MM_CALLER}: TopdownAffine's use_udp does not belong to the codec {name_of(values)}.")
    width, height = values["input_size"]
    if (width, height) != steps.get("size"):
        raise ConfigError(f"{MM_CALLER}: TopdownAffine makes {steps.get('size')}, the codec {(width, height)}.")
    maps = values["heatmap_size"]
    return {"input_size": [height, width], "heatmap_size": [maps[1], maps[0]], "sigma": values.get("sigma", 2.0)}


def _loss(model: Mapping[str, Any]) -> dict[str, Any]:
    section = Section((model.get("head") or {}).get("loss") or {}, "model.head.loss", MM_CALLER)
    name = name_of(section.get("type", "KeypointMSELoss"))
    kinds = {"KeypointMSELoss": "keypoint_mse", "KeypointOHKMMSELoss": "keypoint_ohkm"}
    if name not in kinds:
        raise unsupported("model.head.loss", name, tuple(kinds))
    section.expect("skip_empty_channel", False)
    # The mean of squares has no 0.5 there.
    found = {"kind": kinds[name], "weighted": section.get("use_target_weight", False)}
    found["factor"] = 2.0 * section.get("loss_weight", 1.0)
    if name == "KeypointOHKMMSELoss":
        found["top_k"] = section.get("topk", 8)
    section.close()
    return found


def _data(
    train: Mapping[str, Any], val: Mapping[str, Any] | None, face: str | None, cfg: Section, notes: list[str]
) -> dict[str, Any]:
    name = name_of(train)
    accepted = (*_COCO_STYLE, *_FACES, "MpiiDataset")
    if name not in accepted:
        raise unsupported("train_dataloader.dataset", name, accepted)
    parts = {"train": train} | ({} if val is None else {"val": val})
    for part, values in parts.items():
        section = Section(values, f"{part}_dataloader.dataset", MM_CALLER)
        section.no_effect(*_DATASET_KEYS, "_scope_", "lazy_init", "serialize_data", "max_refetch", "metainfo")
        section.expect("indices", None)
        section.expect("filter_cfg", None)
        section.expect("sample_interval", 1)
        section.expect("subset", None)
        if name == "MpiiDataset":
            section.no_effect("headbox_file")  # head boxes are of gt_valid.mat
        section.close()
    workers = (cfg.get("train_dataloader") or {}).get("num_workers", 4)
    found: dict[str, Any] = {"workers": workers}
    if face:
        notes.append(f"{name}'s JSON is not read: the files of the authors' face repository are expected")
        ends = {"train": "train", "val": "valid" if face == "300w" else "test"}
        folder = {part: _folder(values) for part, values in parts.items()}
        if face == "cofw":
            return {"layout": "cofw", **{p: {"file": f"COFW_{ends[p]}_color.mat"} for p in parts}, **found}
        lists = {p: {"table": f"face_landmarks_{face}_{ends[p]}.csv", "points": face} for p in parts}
        return {"layout": "face_landmarks", **{p: {**v, "images": folder[p]} for p, v in lists.items()}, **found}
    if name == "MpiiDataset":
        notes.append("MPII is read from annot/train.json and annot/valid.json, its head boxes from annot/gt_valid.mat")
        splits = {"train": "train", "val": "valid"}
        return {"layout": "mpii", **{part: {"split": splits[part]} for part in parts}, **found}
    if name != "CocoDataset":
        notes.append(f"{name}: mirrored keypoints and their names are those of the file's category")
    files: dict[str, Any] = {
        part: {"annotations": values["ann_file"], "images": _folder(values), "narrow_boxes": False}
        for part, values in parts.items()
    }
    return {"layout": "coco_keypoints", **files, **found}


def _folder(values: Mapping[str, Any]) -> str:
    return str((values.get("data_prefix") or {}).get("img", "")).rstrip("/") or "."
