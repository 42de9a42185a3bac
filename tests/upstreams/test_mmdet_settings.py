"""Configurations of the real mmdetection's detectors, and its files of 1.x: what is read, and what is refused."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest
import torch
from small_mmdet import FOLDER, small, theirs

import hrnet_fast as hf
from hrnet_fast.checkpoints.mmdet_1x import upgrade_detector
from hrnet_fast.detection import Detector, make_detector_config
from hrnet_fast.detection.mmdet_config import read_detector


@pytest.mark.filterwarnings("ignore")
def test_shipped_configurations() -> None:
    """All of mmdetection's detectors on HRNetV2p are those of ``make_detector_config``."""
    files = [path for path in sorted(FOLDER.glob("*.py")) if "hrnet" in path.name]
    assert len(files) == 29
    for path in files:
        kind, width = re.match(r"(.*)_hrnetv2p-w(\d+)", path.name).groups()
        assert read_detector(path) == make_detector_config(kind.replace("-", "_"), int(width)), path.name


REFUSED: dict[str, Any] = {
    "rpn_head.anchor_generator.octave_base_scale": 4,
    "rpn_head.num_convs": 2,
    "roi_head.bbox_head.type": "DoubleConvFCBBoxHead",
    "roi_head.bbox_head.loss_bbox.type": "GIoULoss",
    "roi_head.bbox_roi_extractor.roi_layer.sampling_ratio": 2,
    "roi_head.mask_head.upsample_cfg": {"type": "carafe", "scale_factor": 2},
    "train_cfg.rcnn.sampler.type": "OHEMSampler",
    "test_cfg.rcnn.nms.type": "soft_nms",
    "test_cfg.rpn.min_bbox_size": -1,
    "rpn_head.bbox_coder.type": "LegacyDeltaXYWHBBoxCoder",
    "roi_head.bbox_roi_extractor.roi_layer.aligned": False,
    "roi_head.mask_head.num_classes": 9,
    "train_cfg.rpm": {},
    "test_cfg.rcnnn": {},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", REFUSED)
def test_settings_that_cannot_be_built(key: str) -> None:
    config = small("mask_rcnn")
    config.merge_from_dict({f"model.{key}": REFUSED[key]})
    with pytest.raises(hf.ConfigError):
        Detector.from_config(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", ["bbox_roi_extractor", "mask_roi_extractor"])
def test_extractors_that_differ(key: str) -> None:
    """The second stage pools from other levels than the first."""
    config = small("cascade_mask_rcnn")
    extractor = config.model.roi_head[key].to_dict()
    config.model.roi_head[key] = [extractor] * 3
    assert read_detector(config).roi.strides == (4, 8, 16, 32)
    config.model.roi_head[key] = [extractor, extractor | {"finest_scale": 28}, extractor]
    with pytest.raises(hf.ConfigError, match=f"{key} needs the same settings in every stage"):
        read_detector(config)


@pytest.mark.filterwarnings("ignore")
def test_fcos_reads_its_settings() -> None:
    """Of a file without statistics they are the shipped FCOS's; a loop beside the model is none of its settings."""
    config = small("fcos")
    del config.model["data_preprocessor"]
    config.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": 12}
    assert read_detector(config).picture == make_detector_config("fcos").picture
    config.model.train_cfg = {"assigner": {"type": "MaxIoUAssigner"}, "pos_weight": -1, "debug": False}
    read_detector(config)
    config.model.train_cfg = {"center_sampling": True}
    with pytest.raises(hf.ConfigError, match="center_sampling"):
        read_detector(config)


@pytest.mark.filterwarnings("ignore")
def test_proposals_of_training() -> None:
    """``rpn_proposal`` is read without ``rpn``, and required beside it."""
    config = small("faster_rcnn")
    del config.model.train_cfg["rpn"]
    config.model.train_cfg.rpn_proposal.nms_pre = 77
    assert read_detector(config).rpn.train_proposals.before_nms == 77
    config = small("faster_rcnn")
    del config.model.train_cfg["rpn_proposal"]
    with pytest.raises(hf.ConfigError, match=r"lacks train_cfg\.rpn_proposal"):
        read_detector(config)


RESIZE = {"type": "Resize", "scale": (640, 480), "keep_ratio": True}
AUGMENT = {"type": "MultiScaleFlipAug", "img_scale": (640, 480), "flip": False, "transforms": [{"type": "Resize"}]}
OTHER_RESIZES: list[list[dict[str, Any]]] = [
    [RESIZE | {"keep_ratio": False}],
    [{"type": "Resize", "scale": (640, 480)}],
    [RESIZE | {"type": "FixScaleResize"}],
    [{"type": "Resize", "scale_factor": 0.5, "keep_ratio": True}],
    [RESIZE, RESIZE],
    [AUGMENT | {"img_scale": [(640, 480), (1333, 800)]}],
    [AUGMENT | {"transforms": [{"type": "Resize", "keep_ratio": False}]}],
    [AUGMENT | {"flip": True}],
]


@pytest.mark.filterwarnings("ignore")
def test_the_test_pipeline() -> None:
    config = small("faster_rcnn")
    for step in (RESIZE, AUGMENT):
        config.test_pipeline = [{"type": "LoadImageFromFile"}, step]
        picture = read_detector(config).picture
        assert (picture.long_side, picture.short_side) == (640, 480)
    for pipeline in OTHER_RESIZES:
        config.test_pipeline = pipeline
        with pytest.raises(hf.ConfigError, match="test_pipeline"):
            read_detector(config)


NORM = {"mean": [1.0, 2.0, 3.0], "std": [1.0, 2.0, 3.0], "to_rgb": True}  # of 2.x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("steps", "divisor"),
    [
        ([], 32),  # without a pipeline, as shipped
        ([RESIZE], 1),
        ([AUGMENT | {"transforms": [{"type": "Resize"}, {"type": "Pad", "size_divisor": 64}]}], 64),
        ([{"type": "Pad", "size": (640, 640)}], None),
    ],
)
def test_padding_of_early_files(steps: list[dict[str, Any]], divisor: int | None) -> None:
    config = small("faster_rcnn")
    del config.model["data_preprocessor"]
    config.img_norm_cfg, config.test_pipeline = NORM, steps
    if divisor is None:
        with pytest.raises(hf.ConfigError, match="accepted is one Pad with size_divisor"):
            read_detector(config)
    else:
        assert read_detector(config).picture.divisor == divisor


@pytest.mark.filterwarnings("ignore")
def test_padding_of_the_preprocessor() -> None:
    """Its own default is mmdetection's."""
    config = small("faster_rcnn")
    del config.model.data_preprocessor["pad_size_divisor"]
    built = theirs(config).data_preprocessor.pad_size_divisor
    assert read_detector(config).picture.divisor == built == 1
    config.test_pipeline = [RESIZE, {"type": "Pad", "size_divisor": 32}]
    with pytest.raises(hf.ConfigError, match="test_pipeline has Pad"):
        read_detector(config)


def test_files_of_1x_are_upgraded_as_by_mmdetection() -> None:
    """By its own converter's functions. It cuts the biases of deltas and masks at the other end than their weights."""
    tool = FOLDER.parents[1] / "tools" / "model_converters" / "upgrade_model_version.py"
    functions = runpy.run_path(str(tool))
    change = {"fc_cls": "reorder_cls_channel", "fc_reg": "truncate_reg_channel", "conv_logits": "truncate_cls_channel"}
    made = {layer: torch.randn(rows, 8) for layer, rows in (("fc_cls", 4), ("fc_reg", 16))}
    made["conv_logits"] = torch.randn(4, 8, 1, 1)
    early = {f"{'mask' if layer == 'conv_logits' else 'bbox'}_head.{layer}.weight": w for layer, w in made.items()}
    early |= {key.replace("weight", "bias"): w.flatten(1).sum(dim=1) for key, w in early.items()}
    upgraded = upgrade_detector(early | {"rpn_head.rpn_cls.weight": torch.zeros(3, 8, 1, 1)}, [])
    assert upgraded is not None
    for key in early:
        weight = upgraded[f"roi_head.{key}"]
        if key.endswith("weight"):
            assert torch.equal(weight, functions[change[key.split(".")[1]]](early[key], 4))
        else:  # of the rows that weights have
            rows = upgraded[f"roi_head.{key}".replace("bias", "weight")]
            assert torch.equal(weight, rows.flatten(1).sum(dim=1))
    assert upgrade_detector(upgraded, []) is None
