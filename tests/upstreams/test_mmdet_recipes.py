"""Configurations of the real mmdetection as recipes: schedule, optimizer, data, sizes; and the optimizer's groups."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mmcv_ext
import pytest
from made_objects import detector_recipe, save_objects

from hrnet_fast.detection.mmdet_config import read_detector
from hrnet_fast.errors import ConfigError
from hrnet_fast.recipes import Recipe, from_openmmlab_config, get_recipe
from hrnet_fast.recipes.model_options import describe_detector, detector_config
from hrnet_fast.trainer.build_task import build_task

mmcv_ext.install()

import mmdet  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.optim import DefaultOptimWrapperConstructor  # noqa: E402

FOLDER = Path(mmdet.__file__).parent / ".mim" / "configs" / "hrnet"
FASTER = "faster-rcnn_hrnetv2p-w32-1x_coco.py"
FCOS = "fcos_hrnetv2p-w32-gn-head_ms-640-800-4xb4-2x_coco.py"


@pytest.mark.parametrize(
    ("file", "name"), [(FASTER, "modern/det_faster_rcnn_w32_1x"), (FCOS, "modern/det_fcos_w32_ms_2x")]
)
def test_the_catalogue_has_mmdetections_settings(file: str, name: str) -> None:
    found, expected = from_openmmlab_config(FOLDER / file).to_dict(), get_recipe(name).to_dict()
    for section in ("task", "model", "loss", "optimizer", "schedule", "loop", "evaluation"):
        assert found[section] == expected[section], section
    picture = found["inputs"]["picture"]
    assert found["inputs"] == expected["inputs"] | {
        "scales": expected["inputs"]["scales"] or [[picture["long_side"], picture["short_side"]]]
    }
    for part in ("train", "val"):
        assert found["data"][part].items() >= expected["data"][part].items()
    assert any("is not loaded by itself" in note for note in found["notes"])


def test_cascades_masks_and_a_warm_up_of_one_rate() -> None:
    htc = from_openmmlab_config(FOLDER / "htc_hrnetv2p-w40_28e_coco.py")
    assert (htc.model.name, htc.model.options) == ("htc", {"width": 40})
    assert (htc.schedule.milestones, htc.loop.epochs, htc.loop.batch_size) == ((24, 27), 28, 16)
    assert htc.data.train["semantic"] == "stuffthingmaps/train2017"
    assert htc.data.train["masks"]
    assert "semantic" not in htc.data.val
    once = from_openmmlab_config(FOLDER / "fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py").schedule
    assert (once.warmup_kind, once.warmup_iterations, once.warmup_factor) == ("constant", 499, pytest.approx(1 / 3))


def changed(file: str, path: str, value: Any) -> Config:
    config = copy.deepcopy(Config.fromfile(FOLDER / file))
    config.merge_from_dict({path: value}, allow_list_keys=True)
    return config


def test_other_heads_are_options_and_come_back() -> None:
    config = changed("mask-rcnn_hrnetv2p-w18-1x_coco.py", "model.roi_head.mask_head.conv_out_channels", 64)
    config.merge_from_dict(
        {
            "model.rpn_head.anchor_generator.scales": [4],
            "model.roi_head.bbox_head.fc_out_channels": 256,
            "model.backbone.extra.stage4.num_modules": 1,
            "train_dataloader.dataset.metainfo": {"classes": ("cat", "dog")},
            "model.roi_head.bbox_head.num_classes": 2,
            "model.roi_head.mask_head.num_classes": 2,
        }
    )
    found = from_openmmlab_config(config)
    assert found.data.train["classes"] == ["cat", "dog"]
    options = found.model.options
    assert options["rpn"] == {"anchors": {"scales": [4]}}
    assert options["roi"] == {"stages": [{"fc_channels": 256}], "mask": {"channels": 64}}
    rebuilt = Recipe.from_dict(found.to_dict())
    assert detector_config(rebuilt.model, 2) == read_detector(config)
    masked = read_detector(config).override(mask=None)
    assert describe_detector(masked).name == "faster_rcnn"


_PIPELINE = "train_dataloader.dataset.pipeline"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (f"{_PIPELINE}.2", {"type": "Mosaic"}, "train_pipeline has Mosaic, which no recipe has"),
        (
            f"{_PIPELINE}.2",
            {"type": "RandomFlip", "prob": 0.5},
            "no transform that resizes",
        ),
        (f"{_PIPELINE}.2.keep_ratio", False, "keep_ratio is False"),
        (f"{_PIPELINE}.3.direction", "vertical", "direction is 'vertical'"),
        ("train_dataloader.dataset.type", "LVISV1Dataset", "LVISV1Dataset, which no recipe has"),
        ("train_dataloader.dataset.metainfo", {"classes": ("cat",)}, "has 1 classes and the detector 80"),
        ("val_evaluator.type", "VOCMetric", "VOCMetric, which no recipe has"),
        ("val_evaluator.metric", "proposal", "metric is 'proposal'"),
        ("optim_wrapper.paramwise_cfg", {"norm_decay_mult": 0.0}, "or bias_decay_mult=0 alone"),
    ],
)
def test_what_no_recipe_has_raises_by_its_name(path: str, value: Any, message: str) -> None:
    config = Config.fromfile(FOLDER / FASTER)
    place: Any = config
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[int(last) if last.isdigit() else last] = value
    with pytest.raises(ConfigError, match=message):
        from_openmmlab_config(config)


def test_sizes_between_two() -> None:
    config = Config.fromfile(FOLDER / FASTER)
    step = {"type": "RandomResize", "scale": [(1333, 640), (1333, 800)], "keep_ratio": True}
    config.train_dataloader.dataset.pipeline[2] = step
    inputs = from_openmmlab_config(config).inputs
    assert (inputs["scales"], inputs["sampling"]) == (((1333, 640), (1333, 800)), "range")


def test_rates_and_decays_are_those_of_mmengine(tmp_path: Path) -> None:
    """FCOS's factors of biases, in a network with batch and group normalisation."""
    optimizer = "optimizer={kind: sgd, lr: 0.01, weight_decay: 0.1, bias_lr_factor: 2, decay_biases: false}"
    task = build_task(detector_recipe("fcos", optimizer), save_objects(tmp_path, count=2), device="cpu")
    model = task.make_model()
    wrapper = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.01, "weight_decay": 0.1}}
    made = DefaultOptimWrapperConstructor(wrapper, {"bias_lr_mult": 2.0, "bias_decay_mult": 0.0})(model)
    expected, found = (
        {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
        for groups in (made.optimizer.param_groups, task.parameter_groups(model))
    )
    assert found == expected
    assert set(found.values()) == {(0.01, 0.1), (0.01, 0.0), (0.02, 0.0)}
