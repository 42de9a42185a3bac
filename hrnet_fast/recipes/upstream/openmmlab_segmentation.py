"""Reader of mmsegmentation's configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.section import Section
from hrnet_fast.recipes.upstream.openmmlab_files import MM_CALLER, name_of
from hrnet_fast.recipes.upstream.openmmlab_training import (
    nothing,
    read_loop,
    read_optimizer,
    read_pipeline,
    read_schedule,
    read_statistics,
    unsupported,
)

# Endings of pictures and masks, and pictures of the training part where known.
_DATASETS: dict[str, tuple[str, str, int | None]] = {
    "CityscapesDataset": ("_leftImg8bit.png", "_gtFine_labelTrainIds.png", 2975),
    "ADE20KDataset": (".jpg", ".png", 20210),
    "PascalContextDataset": (".jpg", ".png", 4998),
    "PascalContextDataset59": (".jpg", ".png", 4998),
    "LoveDADataset": (".png", ".png", None),
    "PotsdamDataset": (".png", ".png", None),
    "ISPRSDataset": (".png", ".png", None),
    "BaseSegDataset": (".jpg", ".png", None),
}


def read_segmentation_sections(
    cfg: Section, data: Mapping[str, Any], notes: list[str], batch: int, train_images: int | None
) -> dict[str, Any]:
    """Return all sections but the model; arguments as in
    :func:`~hrnet_fast.recipes.upstream.openmmlab_pose.read_pose_sections`.

    Raises:
        ConfigError: something that no recipe has.
    """
    loaders = {part: cfg.get(f"{part}_dataloader", None) or {} for part in ("train", "val")}
    sets = {part: loader["dataset"] for part, loader in loaders.items() if "dataset" in loader}
    name = name_of(sets["train"])
    if name not in _DATASETS:
        raise unsupported("train_dataloader.dataset", name, tuple(_DATASETS))
    steps = read_pipeline(sets["train"].get("pipeline", ()), "train_pipeline", _STEPS, notes)
    if "crop_size" not in steps or "base" not in steps:
        raise ConfigError(f"{MM_CALLER}: train_pipeline has no RandomResize or no RandomCrop; a recipe needs both.")
    side, size = _base_side(steps["base"], name)
    optimizer, loop = read_optimizer(cfg)
    run = read_loop(cfg, train_images or _DATASETS[name][2], batch, name)
    heads = data["model"]["decode_head"]
    heads = [heads] if isinstance(heads, Mapping) else heads
    classes = heads[-1]["num_classes"]
    schedule = read_schedule(cfg, optimizer["lr"], run.pop("total"), run.pop("by_epoch"))
    inputs = {
        "crop_size": steps["crop_size"],
        "base_size": size,
        "base_side": side,
        "scales": steps["scales"],
        "scale_step": 0.0,
        "flip_probability": steps.get("flip", 0.0),
        "colors": steps.get("colors"),
        **read_statistics(data["model"]),
    }
    notes.append("pictures smaller than the crop are padded with black, not with the mean colour")
    reduced = steps.get("reduce", False) or sets["train"].get("reduce_zero_label", False)
    return {
        "task": "segmentation",
        "data": {"workers": loaders["train"].get("num_workers", 4), **_data(name, sets, classes, reduced)},
        "inputs": inputs,
        "loss": _loss(heads),
        "optimizer": optimizer,
        "schedule": schedule,
        "loop": {"batch_size": batch, "keep_last_batch": False, **run, **loop},
        "evaluation": _evaluation(cfg, data["model"], side, size),
    }


def _resize(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    section.expect("keep_ratio", True, default=False)
    section.expect("resize_type", "Resize")
    found["base"] = tuple(section.get("scale"))
    found["scales"] = list(section.get("ratio_range"))


def _crop(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    found["crop_size"] = list(section.get("crop_size"))
    share = section.get("cat_max_ratio", 1.0)
    if share != 1.0:
        notes.append(f"RandomCrop.cat_max_ratio={share} is left out: crops of one class are kept")
    section.no_effect("ignore_index")


def _flip(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    section.expect("direction", "horizontal")
    found["flip"] = section.get("prob", 0.0) or 0.0


def _colors(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    for key, built in (("brightness_delta", 32), ("contrast_range", (0.5, 1.5)), ("saturation_range", (0.5, 1.5))):
        section.expect(key, built)
    section.expect("hue_delta", 18)
    found["colors"] = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.1, "probability": 0.5}
    notes.append("PhotoMetricDistortion: its four changes are drawn for the same half of the pictures")


def _labels(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    found["reduce"] = bool(section.get("reduce_zero_label", False))
    nothing(section, found, notes)


_STEPS = {
    "LoadImageFromFile": nothing,
    "LoadAnnotations": _labels,
    "RandomResize": _resize,
    "RandomCrop": _crop,
    "RandomFlip": _flip,
    "PhotoMetricDistortion": _colors,
    "PackSegInputs": nothing,
}


def _base_side(scale: tuple[int, ...], name: str) -> tuple[str, int]:
    """Return the side that a scale (a, b) sets: the longer is at most the larger of both, the shorter the smaller."""
    longer, shorter = max(scale), min(scale)
    if longer == shorter or (name == "CityscapesDataset" and longer == 2 * shorter):
        return "longer", longer
    return "shorter", shorter  # no picture is so long that its longer side decides


def _data(name: str, sets: Mapping[str, Any], classes: int, reduced: bool) -> dict[str, Any]:
    for part, values in sets.items():
        section = Section(values, f"{part}_dataloader.dataset", MM_CALLER)
        section.no_effect("type", "data_root", "data_prefix", "pipeline", "ann_file", "img_suffix", "seg_map_suffix")
        section.no_effect("reduce_zero_label", "test_mode", "metainfo", "lazy_init", "serialize_data", "_scope_")
        section.no_effect("max_refetch")
        section.expect("ignore_index", 255)
        section.expect("indices", None)
        section.close()
    if name.startswith("PascalContext"):
        splits = {part: str(values["ann_file"]).rpartition("/")[2].rpartition(".")[0] for part, values in sets.items()}
        return {"layout": "pascal_context", **{p: {"split": s, "num_classes": classes} for p, s in splits.items()}}
    parts = {}
    for part, values in sets.items():
        if values.get("ann_file"):
            raise ConfigError(f"{MM_CALLER}: {part}_dataloader.dataset.ann_file is given; folders are read.")
        prefix = values["data_prefix"]
        endings = values.get("img_suffix", _DATASETS[name][0]), values.get("seg_map_suffix", _DATASETS[name][1])
        parts[part] = {
            "images": prefix["img_path"],
            "masks": prefix["seg_map_path"],
            "num_classes": classes,
            "image_ending": endings[0],
            "mask_ending": endings[1],
            **({"label_map": "from_one"} if reduced else {}),
        }
    return {"layout": "mask_folders", **parts}


def _loss(heads: Any) -> dict[str, Any]:
    weights, classes = [], []
    for i, head in enumerate(heads):
        if head.get("sampler"):
            raise ConfigError(f"{MM_CALLER}: decode_head has {name_of(head['sampler'])}, which no recipe has.")
        section = Section(head.get("loss_decode") or {}, f"decode_head[{i}].loss_decode", MM_CALLER)
        name = name_of(section.get("type", "CrossEntropyLoss"))
        if name != "CrossEntropyLoss":
            raise unsupported("loss_decode", name, ("CrossEntropyLoss",))
        section.expect("use_sigmoid", False)
        section.expect("use_mask", False)
        section.expect("reduction", "mean")
        section.no_effect("loss_name")
        weights.append(float(section.get("loss_weight", 1.0)))
        classes.append(section.get("class_weight", None))
        averaged = section.expect("avg_non_ignore", False, True)
        section.close()
    if len(weights) == 1 and weights != [1.0]:
        raise ConfigError(f"{MM_CALLER}: loss_decode.loss_weight is {weights[0]}; accepted is 1 for a single head.")
    if classes[0] != classes[-1]:
        raise ConfigError(f"{MM_CALLER}: the decode heads have different class_weight; a recipe has one.")
    if averaged and classes[0]:
        raise ConfigError(f"{MM_CALLER}: avg_non_ignore=True with class_weight divides by the number of pixels.")
    return {
        "kind": "pixel_cross_entropy",
        "class_weights": classes[0],
        "output_weights": weights if len(weights) == 2 else None,
        "divide_by": "weights" if averaged else "pixels",
    }


def _evaluation(cfg: Section, model: Mapping[str, Any], side: str, size: int) -> dict[str, Any]:
    test = Section(model.get("test_cfg") or {"mode": "whole"}, "model.test_cfg", MM_CALLER)
    window, stride = None, 1.0
    if test.expect("mode", "whole", "slide") == "slide":
        window, steps = list(test.get("crop_size")), test.get("stride")
        stride = steps[0] / window[0]
    test.close()
    given = cfg.get("val_evaluator", ())
    for metric in [given] if isinstance(given, Mapping) else given:
        if name_of(metric) != "IoUMetric":
            raise unsupported("val_evaluator", name_of(metric), ("IoUMetric",))
    return {
        "metric": "miou",
        "window": window,
        "stride": stride,
        "base_size": size if side == "longer" else None,
        "metric_options": {"absent": "skip"},
        "batch_size": 1,
    }
