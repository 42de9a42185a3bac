"""Configurations of mmpose and mmsegmentation: mappings of the keys that matter here, against the catalogue."""

from __future__ import annotations

from typing import Any

import pytest

from hrnet_fast import ConfigError
from hrnet_fast.recipes import Recipe, from_openmmlab_config, get_recipe

STATISTICS = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}


def backbone(width: int) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "stage1": {
            "num_modules": 1,
            "num_branches": 1,
            "block": "BOTTLENECK",
            "num_blocks": (4,),
            "num_channels": (64,),
        }
    }
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        widths = tuple(width * 2**k for k in range(stage))
        extra[f"stage{stage}"] = {"num_modules": modules, "num_branches": stage, "block": "BASIC"}
        extra[f"stage{stage}"] |= {"num_blocks": (4,) * stage, "num_channels": widths}
    return {"type": "HRNet", "in_channels": 3, "extra": extra}


def pose() -> dict[str, Any]:
    codec = {"type": "MSRAHeatmap", "input_size": (192, 256), "heatmap_size": (48, 64), "sigma": 2}
    steps = [
        {"type": "LoadImage"},
        {"type": "GetBBoxCenterScale"},
        {"type": "RandomFlip", "direction": "horizontal"},
        {"type": "RandomHalfBody"},
        {"type": "RandomBBoxTransform"},
        {"type": "TopdownAffine", "input_size": (192, 256)},
        {"type": "GenerateTarget", "encoder": codec},
        {"type": "PackPoseInputs"},
    ]

    def data(part: str) -> dict[str, Any]:
        files = {"ann_file": f"annotations/person_keypoints_{part}.json", "data_prefix": {"img": f"{part}/"}}
        return {"type": "CocoDataset", "data_root": "data/coco/", "data_mode": "topdown", "pipeline": steps, **files}

    return {
        "default_scope": "mmpose",
        "data_root": "data/coco/",
        "auto_scale_lr": {"base_batch_size": 512},
        "train_cfg": {"by_epoch": True, "max_epochs": 210, "val_interval": 10},
        "optim_wrapper": {"optimizer": {"type": "Adam", "lr": 5e-4}},
        "param_scheduler": [
            {"type": "LinearLR", "begin": 0, "end": 500, "start_factor": 0.001, "by_epoch": False},
            {"type": "MultiStepLR", "begin": 0, "end": 210, "milestones": [170, 200], "gamma": 0.1, "by_epoch": True},
        ],
        "model": {
            "type": "TopdownPoseEstimator",
            "data_preprocessor": {"type": "PoseDataPreprocessor", **STATISTICS},
            "backbone": backbone(32),
            "head": {"type": "HeatmapHead", "in_channels": 32, "out_channels": 17, "deconv_out_channels": None,
                     "loss": {"type": "KeypointMSELoss", "use_target_weight": True}, "decoder": codec},
            "test_cfg": {"flip_test": True, "flip_mode": "heatmap", "shift_heatmap": True},
        },
        "train_dataloader": {"batch_size": 64, "num_workers": 4, "dataset": data("train2017")},
        "val_dataloader": {"dataset": data("val2017") | {"bbox_file": "data/coco/boxes.json", "test_mode": True}},
        "val_evaluator": {"type": "CocoMetric", "ann_file": "data/coco/annotations/person_keypoints_val2017.json"},
    }  # fmt: skip


def segmentation(heads: int = 1) -> dict[str, Any]:
    norm, widths = {"type": "SyncBN", "requires_grad": True}, [48, 96, 192, 384]
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}
    common = {"in_channels": widths, "in_index": (0, 1, 2, 3), "input_transform": "resize_concat", "num_classes": 19,
              "norm_cfg": norm, "align_corners": False, "kernel_size": 1, "num_convs": 1, "concat_input": False,
              "dropout_ratio": -1, "loss_decode": loss}  # fmt: skip
    fcn = common | {"type": "FCNHead", "channels": sum(widths)}
    ocr = {key: common[key] for key in common if key not in ("kernel_size", "num_convs", "concat_input")}
    ocr |= {"type": "OCRHead", "channels": 512, "ocr_channels": 256}
    head: Any = fcn if heads == 1 else [fcn | {"loss_decode": loss | {"loss_weight": 0.4}}, ocr]
    steps = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": (2048, 1024), "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (512, 1024), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    sets = {
        part: {"type": "CityscapesDataset", "data_root": "data/cityscapes/", "pipeline": steps,
               "data_prefix": {"img_path": f"leftImg8bit/{part}", "seg_map_path": f"gtFine/{part}"}}
        for part in ("train", "val")
    }  # fmt: skip
    return {
        "default_scope": "mmseg",
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 160000, "val_interval": 16000},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
            "clip_grad": None,
        },
        "param_scheduler": [
            {"type": "PolyLR", "eta_min": 1e-4, "power": 0.9, "begin": 0, "end": 160000, "by_epoch": False}
        ],
        "model": {
            "type": "EncoderDecoder",
            "data_preprocessor": {"type": "SegDataPreProcessor", "pad_val": 0, "seg_pad_val": 255, **STATISTICS},
            "backbone": {k: v for k, v in backbone(48).items() if k != "in_channels"}
            | {"norm_cfg": norm, "norm_eval": False},
            "decode_head": head,
            "test_cfg": {"mode": "whole"},
        },
        "train_dataloader": {"batch_size": 2, "num_workers": 4, "dataset": sets["train"]},
        "val_dataloader": {"dataset": sets["val"]},
        "val_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
    }


def same(found: Recipe, name: str, *but: str) -> None:
    a, b = found.to_dict(), get_recipe(name).to_dict()
    for section in {*b} - {"description", "notes", "model", "evaluation", *but}:
        assert a[section] == b[section], section
    assert a["model"]["options"].get("init") == b["model"]["options"].get("init")


def test_mmpose_settings_are_those_of_the_catalogue() -> None:
    found = from_openmmlab_config(pose())
    same(found, "modern/pose_w32_coco")
    assert (found.model.name, found.evaluation.detections) == ("hrnetv1_w32_pose", "boxes.json")
    assert found.evaluation.metric_options["rescore"]
    half = pose()
    half["optim_wrapper"] |= {"type": "AmpOptimWrapper", "loss_scale": "dynamic"}
    same(from_openmmlab_config(half), "modern/pose_w32_coco_fp16")
    assert from_openmmlab_config(pose(), gpus=2).loop.batch_size == 128


def test_mmpose_faces_are_read_from_the_authors_lists() -> None:
    config = pose()
    for part in ("train", "val"):
        config[f"{part}_dataloader"]["dataset"] |= {"type": "mmpose.WFLWDataset", "data_prefix": {"img": "images/"}}
    config["val_evaluator"] = [{"type": "NME", "norm_mode": "keypoint_distance"}, {"type": "AUC"}]
    found = from_openmmlab_config(config)
    assert (found.task, found.evaluation.metric, found.data.layout) == ("landmarks", "nme", "face_landmarks")
    assert found.data.val == {"table": "face_landmarks_wflw_test.csv", "points": "wflw", "images": "images"}
    assert any("AUC is left out" in note for note in found.notes)


@pytest.mark.parametrize("heads", [1, 2])
def test_mmsegmentation_settings_are_those_of_the_catalogue(heads: int) -> None:
    found = from_openmmlab_config(segmentation(heads), gpus=4)
    same(found, "modern/seg_w48_cityscapes", "data", *(("loss",) if heads == 2 else ()))
    assert found.data.train["mask_ending"] == "_gtFine_labelTrainIds.png"
    assert found.evaluation.metric_options == {"absent": "skip"}
    assert any("cat_max_ratio=0.75" in note for note in found.notes)
    if heads == 2:
        assert found.loss["output_weights"] == (0.4, 1.0)
        assert found.model.options.get("ocr_outputs", "both") == "both"


def change(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    place: Any = config
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[int(last) if last.isdigit() else last] = value
    return config


_PIPELINE = "train_dataloader.dataset.pipeline"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{_PIPELINE}.4", {"type": "Albumentation"}, "train_pipeline has Albumentation, which no recipe has"),
        (f"{_PIPELINE}.3.padings", 1, r"RandomHalfBody\).padings: not known"),
        (f"{_PIPELINE}.4.scale_factor", (0.5, 2.0), "not symmetric around 1"),
        (f"{_PIPELINE}.5.use_udp", True, "does not belong to the codec"),
        ("optim_wrapper.optimizer.type", "Lion", "Lion, which no recipe has; accepted are Adam, AdamW, SGD"),
        ("optim_wrapper.paramwise_cfg", {"custom_keys": {"backbone": {"lr_mult": 0.1}}}, "lr_mult of the head alone"),
        ("optim_wrapper.constructor", "LayerDecay", "optim_wrapper.constructor is 'LayerDecay'"),
        ("param_scheduler.1.type", "OneCycleLR", "OneCycleLR"),
        ("param_scheduler.0.begin", 100, "begin is 100"),
        ("model.head.loss.type", "AdaptiveWingLoss", "AdaptiveWingLoss, which no recipe has"),
        ("train_dataloader.dataset.type", "CocoWholeBodyDataset", "CocoWholeBodyDataset, which no recipe has"),
        ("train_dataloader.dataset.filter_cfg", {"min": 3}, "filter_cfg is"),
        ("val_evaluator", {"type": "EPE"}, "val_evaluator has EPE"),
        ("val_evaluator.use_area", False, "use_area is False"),
        ("custom_hooks", [{"type": "PipelineSwitchHook"}], "custom_hooks has PipelineSwitchHook"),
        ("train_cfg.type", "IterBasedTrainLoop", "train_cfg.type is 'IterBasedTrainLoop'"),
        ("model.data_preprocessor.bgr_to_rgb", False, "bgr_to_rgb is False"),
        ("optim_wrapper", {}, "optim_wrapper missing"),
    ],
)
def test_what_no_mmpose_recipe_has_raises_by_its_name(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_openmmlab_config(change(pose(), path, value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train_dataloader.dataset.type", "ISPRSDataset", "give train_images="),
        ("model.decode_head.sampler", {"type": "OHEMPixelSampler"}, "OHEMPixelSampler, which no recipe has"),
        ("model.decode_head.loss_decode.type", "DiceLoss", "DiceLoss, which no recipe has"),
        ("param_scheduler.0.end", 80000, "end is 80000"),
        (f"{_PIPELINE}.2.keep_ratio", False, "keep_ratio is False"),
        ("train_dataloader.dataset.ann_file", "a.txt", "ann_file is given"),
        ("train_cfg.type", "MyLoop", "MyLoop, which no recipe has"),
    ],
)
def test_what_no_mmsegmentation_recipe_has_raises_by_its_name(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_openmmlab_config(change(segmentation(), path, value))
