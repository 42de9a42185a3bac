"""Engines inside other packages' models: their own inference functions give the same results, and `restore` the old."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mmcv_ext
import numpy as np
import pytest
import torch
from tiny_networks import enliven, relative_l2
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.errors import InputError

mmcv_ext.install()

from mmengine.config import Config  # noqa: E402

SIZE = 64
IMAGE = np.random.RandomState(0).randint(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
NORM = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
BN = {"type": "BN"}


def stages(all_maps: bool = True) -> dict[str, Any]:
    """HRNet's settings as OpenMMLab's configs have them, with one block where a file has four."""
    widths = (4, 8, 16, 32)
    found: dict[str, Any] = {
        "stage1": {"num_branches": 1, "block": "BOTTLENECK", "num_blocks": (1,), "num_channels": (4,)}
    }
    for k in (2, 3, 4):
        found[f"stage{k}"] = {
            "num_branches": k, "block": "BASIC", "num_blocks": (1,) * k, "num_channels": widths[:k],
        }  # fmt: skip
    found["stage4"]["multiscale_output"] = all_maps
    return {name: {"num_modules": 1, **stage} for name, stage in found.items()}


def fcn(**changes: Any) -> dict[str, Any]:
    return {
        "type": "FCNHead", "in_channels": (4, 8, 16, 32), "in_index": (0, 1, 2, 3), "channels": 60, "kernel_size": 1,
        "input_transform": "resize_concat", "num_convs": 1, "concat_input": False, "dropout_ratio": -1,
        "num_classes": 3, "norm_cfg": BN, "align_corners": False, "loss_decode": {"type": "CrossEntropyLoss"},
    } | changes  # fmt: skip


def pose_model() -> nn.Module:
    from mmpose.apis import init_model

    codec = {"type": "MSRAHeatmap", "input_size": (SIZE, SIZE), "heatmap_size": (SIZE // 4, SIZE // 4), "sigma": 2}
    head = {
        "type": "HeatmapHead", "in_channels": 4, "out_channels": 17, "deconv_out_channels": None, "decoder": codec,
        "loss": {"type": "KeypointMSELoss"},
    }  # fmt: skip
    pipeline = [
        {"type": "LoadImage"}, {"type": "GetBBoxCenterScale"},
        {"type": "TopdownAffine", "input_size": codec["input_size"]}, {"type": "PackPoseInputs"},
    ]  # fmt: skip
    model = {
        "type": "TopdownPoseEstimator", "backbone": {"type": "HRNet", "extra": stages(False)}, "head": head,
        "data_preprocessor": {"type": "PoseDataPreprocessor", **NORM},
        "test_cfg": {"flip_test": True, "flip_mode": "heatmap", "output_heatmaps": True},
    }  # fmt: skip
    data = {"dataset": {"type": "CocoDataset", "data_mode": "topdown", "pipeline": pipeline}}
    config = Config({"model": model, "test_dataloader": data, "default_scope": "mmpose"})
    return init_model(config, device="cpu")  # type: ignore[no-any-return]


def poses(model: nn.Module) -> list[Tensor]:
    from mmpose.apis import inference_topdown

    boxes = np.array([[0, 0, SIZE, SIZE], [8, 8, 56, 60]], dtype=np.float32)
    found = inference_topdown(model, IMAGE, boxes)
    return [sample.pred_fields.heatmaps for sample in found]


def segmentation_model(ocr: bool = False) -> nn.Module:
    from mmseg.apis import init_model

    kind: dict[str, Any] = {"type": "EncoderDecoder", "decode_head": fcn()}
    if ocr:
        second = {key: value for key, value in fcn(channels=16).items() if key not in ("kernel_size", "num_convs")}
        second = {k: v for k, v in second.items() if k != "concat_input"} | {"type": "OCRHead", "ocr_channels": 8}
        kind = {"type": "CascadeEncoderDecoder", "num_stages": 2, "decode_head": [fcn(), second]}
    model = {
        **kind, "backbone": {"type": "HRNet", "norm_cfg": BN, "norm_eval": False, "extra": stages()},
        "data_preprocessor": {"type": "SegDataPreProcessor", **NORM, "size": (SIZE, SIZE)},
        "test_cfg": {"mode": "whole"},
    }  # fmt: skip
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}]
    return init_model(Config({"model": model, "test_pipeline": pipeline, "default_scope": "mmseg"}), device="cpu")  # type: ignore[no-any-return]


def segmentation(model: nn.Module) -> list[Tensor]:
    from mmseg.apis import inference_model

    return [inference_model(model, IMAGE).seg_logits.data]


def detection_model() -> nn.Module:
    from mmdet.apis import init_detector

    boxes = {"type": "DeltaXYWHBBoxCoder"}
    anchors = {"type": "AnchorGenerator", "scales": [8], "ratios": [0.5, 1.0, 2.0], "strides": [4, 8, 16, 32, 64]}
    losses = {"loss_cls": {"type": "CrossEntropyLoss"}, "loss_bbox": {"type": "L1Loss"}}
    sigmoid = {"loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True}, "loss_bbox": {"type": "L1Loss"}}
    roi = {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": {
            "type": "SingleRoIExtractor", "out_channels": 16, "featmap_strides": [4, 8, 16, 32],
            "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
        },
        "bbox_head": {
            "type": "Shared2FCBBoxHead", "in_channels": 16, "fc_out_channels": 16, "num_classes": 3,
            "bbox_coder": boxes, **losses,
        },
    }  # fmt: skip
    nms = {"type": "nms", "iou_threshold": 0.7}
    model = {
        "type": "FasterRCNN", "backbone": {"type": "HRNet", "extra": stages()},
        "neck": {"type": "HRFPN", "in_channels": [4, 8, 16, 32], "out_channels": 16},
        "rpn_head": {
            "type": "RPNHead", "in_channels": 16, "feat_channels": 16, "anchor_generator": anchors,
            "bbox_coder": boxes, **sigmoid,
        },
        "roi_head": roi, "data_preprocessor": {"type": "DetDataPreprocessor", **NORM, "pad_size_divisor": 32},
        "train_cfg": None,
        "test_cfg": {
            "rpn": {"nms_pre": 50, "max_per_img": 20, "nms": nms, "min_bbox_size": 0},
            "rcnn": {"score_thr": 0.0, "nms": nms, "max_per_img": 10},
        },
    }  # fmt: skip
    pipeline = [
        {"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (SIZE, SIZE), "keep_ratio": True},
        {"type": "PackDetInputs", "meta_keys": ("img_path", "ori_shape", "img_shape", "scale_factor")},
    ]  # fmt: skip
    data = {"dataset": {"type": "CocoDataset", "pipeline": pipeline}}
    config = Config({"model": model, "test_dataloader": data, "default_scope": "mmdet"})
    return init_detector(config, palette="random", device="cpu")  # type: ignore[no-any-return]


def detections(model: nn.Module) -> list[Tensor]:
    from mmdet.apis import inference_detector

    found = inference_detector(model, IMAGE).pred_instances
    assert len(found) > 3
    return [found.bboxes, found.scores]


def smp_model() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.FPN("tu-hrnet_w18_small", encoder_weights=None, classes=3)  # type: ignore[no-any-return]


def smp_prediction(model: Any) -> list[Tensor]:
    x = torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 255
    return [model.predict(x)]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], list[Tensor]], list[str]]] = {
    "mmpose": (pose_model, poses, ["backbone", "head"]),
    "mmseg": (segmentation_model, segmentation, ["backbone", "decode_head"]),
    "mmseg ocr": (lambda: segmentation_model(True), segmentation, ["backbone", "decode_head.0", "decode_head.1"]),
    "mmdet": (detection_model, detections, ["backbone", "neck"]),
    "smp": (smp_model, smp_prediction, [""]),
}


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_their_own_inference(name: str) -> None:
    make, predict, parts = CASES[name]
    model = enliven(make()).eval()
    kind, state = type(model), {key: value.clone() for key, value in model.state_dict().items()}
    own = predict(model)
    example = torch.randn(1, 3, SIZE, SIZE)
    assert hf.optimize_for_inference(model, example, inplace=True if name == "smp" else None) is model
    report = hf.explain(model)
    assert [block.name for block in report.blocks if block.fast] == parts
    assert isinstance(model, kind)
    given = predict(model)
    assert not [block for block in hf.explain(model).blocks if block.reason]
    for a, b in zip(given, own, strict=True):
        assert relative_l2(a, b) <= 1e-5
    assert not all(torch.equal(a, b) for a, b in zip(given, own, strict=True))  # an engine computed them
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert type(hf.restore(model)) is kind
    for a, b in zip(predict(model), own, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")
def test_an_engine_as_a_backbone() -> None:
    """By assignment, where only the backbone is to be an engine's."""
    model: Any = enliven(detection_model()).eval()
    own = detections(model)
    backbone = model.backbone
    model.backbone = hf.optimize_for_inference(backbone, torch.randn(1, 3, SIZE, SIZE)).module()
    for a, b in zip(detections(model), own, strict=True):
        assert relative_l2(a, b) <= 1e-5
    with pytest.raises(InputError, match="state_dict"):
        model.state_dict()
    model.backbone = backbone
    for a, b in zip(detections(model), own, strict=True):
        assert torch.equal(a, b)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_training_between_predictions() -> None:
    """A trainer's step, then an evaluation: the engines read the new weights."""
    model: Any = enliven(segmentation_model()).eval()
    hf.optimize_for_inference(model, torch.randn(1, 3, SIZE, SIZE), refresh="auto")
    before = segmentation(model)
    model.train()
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, SIZE, SIZE, dtype=torch.long)))
    losses = model.loss(torch.randn(2, 3, SIZE, SIZE), [sample, sample])
    losses["decode.loss_ce"].backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    torch.optim.SGD(model.parameters(), 0.1).step()
    model.eval()
    after = segmentation(model)
    assert relative_l2(after[0], before[0]) > 1e-3
    own = segmentation(hf.restore(model))
    assert relative_l2(after[0], own[0]) <= 1e-5
