"""Checkpoints of detectors: recognised, inferred, written back bit for bit, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from command_line import call
from tiny_detectors import CLASSES, tiny_detector
from tiny_networks import image
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.detection import KINDS, Detector


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    """Kind, width, classes, stages and heads are found; tensors, and the detections they give, stay the same."""
    model = tiny_detector(kind, norm_eval=True, score_threshold=0.0)
    state = {k: v + 7 if k.endswith("num_batches_tracked") else v for k, v in model.state_dict().items()}
    hf.save_checkpoint(state, tmp_path / "detector.safetensors")
    given = {"score_threshold": 0.0} | ({"groups": model.config.fcos.groups} if kind == "fcos" else {})
    loaded = hf.load_checkpoint(tmp_path / "detector.safetensors", impl="reference", **given)
    assert isinstance(loaded, Detector)
    assert loaded.family == f"mmdet_{kind}"
    assert not loaded.training
    assert loaded.config == model.config
    assert "short_side=800" in loaded.assumptions[0]
    assert "score_threshold" not in loaded.assumptions[0]
    written = hf.convert_checkpoint(loaded.state_dict(), to=loaded.family)
    assert written.keys() == state.keys()
    assert all(torch.equal(written[key], value) for key, value in state.items())
    for found, expected in zip(loaded(image(64, 96)), model(image(64, 96)), strict=True):
        assert len(expected) > 0
        for name in ("boxes", "scores", "labels", "masks"):
            one, other = getattr(found, name), getattr(expected, name)
            assert one is other is None or torch.equal(one, other)
    assert loaded.backbone.config.norm_eval


def test_settings_can_be_given() -> None:
    state = tiny_detector("faster_rcnn").state_dict()
    loaded = hf.load_checkpoint(state, score_threshold=0.3, nms_iou=0.6, per_image=7, short_side=200)
    assert (loaded.config.roi.score_threshold, loaded.config.roi.nms_iou, loaded.config.roi.per_image) == (0.3, 0.6, 7)
    assert loaded.config.picture.short_side == 200
    with pytest.raises(hf.ConfigError, match="unknown option"):
        hf.load_checkpoint(state, score_thr=0.3)
    with pytest.raises(hf.ConfigError, match="mask_threshold: given, but without effect"):
        hf.load_checkpoint(state, mask_threshold=0.7)


def test_settings_beside_the_weights(tmp_path: Path) -> None:
    """Anchors, thresholds and sizes that a state_dict does not tell, of files that training writes."""
    model = tiny_detector("faster_rcnn", norm_eval=True, score_threshold=0.02, short_side=96)
    anchors = dataclasses.replace(model.config.rpn.anchors, scales=(2,), ratios=(1.0, 2.0))
    config = dataclasses.replace(model.config, rpn=dataclasses.replace(model.config.rpn, anchors=anchors))
    state = Detector(config).state_dict()
    hf.save_checkpoint(state, tmp_path / "own.pth", detector=config)
    loaded = hf.load_checkpoint(tmp_path / "own.pth")
    assert loaded.config == config
    assert loaded.assumptions == ()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in state.items())
    changed = hf.load_checkpoint(tmp_path / "own.pth", short_side=64, head="keep", num_classes=5).config
    assert changed == dataclasses.replace(config, num_classes=5).override(short_side=64)
    assert hf.load_checkpoint(tmp_path / "own.pth", family="mmdet").config.head.kind == "v2p"
    content = torch.load(tmp_path / "own.pth")
    for wrong in ({**config.to_dict(), "num_classes": 0}, {}, 5, "faster_rcnn"):
        with pytest.raises(hf.CheckpointError, match="detector_config is no detector"):
            hf.load_checkpoint(content | {"detector_config": wrong})
    with pytest.raises(hf.CheckpointError, match="mis-shaped"):
        hf.load_checkpoint(content | {"detector_config": model.config.to_dict()})
    with pytest.raises(hf.CheckpointError, match="have tensors alone"):
        hf.save_checkpoint(state, tmp_path / "own.safetensors", detector=config)


def test_another_number_of_classes() -> None:
    """For transfer: the layers that fit are loaded, the others drawn."""
    state = tiny_detector("mask_rcnn").state_dict()
    loaded = hf.load_checkpoint(state, head="keep", num_classes=9)
    assert loaded.state_dict()["roi_head.bbox_head.fc_cls.weight"].shape[0] == 10
    own = loaded.state_dict()
    assert torch.equal(own["rpn_head.rpn_cls.weight"], state["rpn_head.rpn_cls.weight"])
    assert any("drawn at random" in note and "mask_head.conv_logits" in note for note in loaded.notes)


def test_pyramid_and_trunk_alone() -> None:
    model = tiny_detector("htc")
    state = model.state_dict()
    pyramid = hf.load_checkpoint(state, family="mmdet", impl="reference")
    x = image(64, 96)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(pyramid(x), model.levels(x), strict=True))
    assert hf.convert_checkpoint(state, to="mmdet").keys() == {k for k in state if k.startswith(("backbone.", "neck."))}
    trunk = hf.load_checkpoint(state, part="backbone", impl="reference")
    assert trunk.config.head.kind == "features"
    fresh = tiny_detector("faster_rcnn")
    hf.load_backbone(fresh.backbone, state)
    assert torch.equal(fresh.backbone.conv1.weight, model.backbone.conv1.weight)


def early_state(kind: str, authors: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Entries as mmdetection 1.x has them, and as 2.x has; the authors' repository has another name in the neck."""
    state = dict(tiny_detector(kind).state_dict())
    early = {_early_name(key, authors): _with_background(key, value) for key, value in state.items()}
    if kind == "htc":
        early["mask_head.0.conv_res.conv.weight"] = torch.zeros(8, 8, 1, 1)
    return early, state


def _early_name(key: str, authors: bool) -> str:
    if authors:
        key = key.replace("neck.reduction_conv.conv.", "neck.reduction_conv.0.")
    return re.sub(r"neck\.fpn_convs\.(\d)\.conv\.", r"neck.fpn_conv.\1.", key).replace("roi_head.", "")


def _with_background(key: str, value: Tensor) -> Tensor:
    if "fc_cls" in key:
        return torch.cat([value[-1:], value[:-1]])
    if "fc_reg" in key and len(value) == 4 * CLASSES:
        return torch.cat([value[:4] + 7, value])
    return torch.cat([value[:1] + 7, value]) if "mask_head" in key and "conv_logits" in key else value


@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "htc"])
def test_files_of_mmdetection_1x(kind: str, authors: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Heads included: the background moves to the end, and boxes are computed as at that time."""
    early, state = early_state(kind, authors)
    loaded = hf.load_checkpoint(early, impl="reference")
    assert loaded.family == f"mmdet_{kind}"
    assert loaded.config.legacy
    told = ["the background was made the last class"] + ["mask_head.0.conv_res."] * (kind == "htc")
    assert all(words in note for words, note in zip(told, loaded.notes, strict=True))
    own = loaded.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], value) for key, value in state.items() if "num_batches" not in key)
    assert not hf.load_checkpoint(early, family=loaded.family, legacy=False).config.legacy
    for family in ("det" if authors else "mmdet_1x", "mmdet"):
        pyramid = hf.load_checkpoint(early, family=family)
        assert pyramid.config.head.kind == "v2p"
        assert "left out" in pyramid.notes[0]
    caplog.clear()
    hf.convert_checkpoint(early, to=loaded.family)
    assert any(
        "legacy=True, anchors" in message and "not among these tensors" in message for message in caplog.messages
    )


def test_the_command_convert_keeps_a_detectors_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that the file contains, and ``legacy=True`` of 1.x; .safetensors has no place, which a note says."""
    config = tiny_detector("faster_rcnn", norm_eval=True, score_threshold=0.02, short_side=96).config
    early, _ = early_state("faster_rcnn", False)
    hf.save_checkpoint(Detector(config).state_dict(), tmp_path / "own.pth", detector=config)
    hf.save_checkpoint(early, tmp_path / "early.pth")
    hf.save_checkpoint(Detector(config).state_dict(), tmp_path / "plain.pth")
    for name in ("own", "early", "plain"):
        source, there = tmp_path / f"{name}.pth", tmp_path / f"{name}_written.pth"
        code, _, err = call(capsys, "convert", source, there, "--to", "mmdet_faster_rcnn")
        assert (code, "not among these tensors" in err) == (0, False)
        assert hf.load_checkpoint(there).config == hf.load_checkpoint(source).config
        code, _, err = call(capsys, "convert", source, there.with_suffix(".safetensors"), "--to", "mmdet_faster_rcnn")
        assert (code, "not among these tensors" in err) == (0, name != "plain")
    assert hf.load_checkpoint(tmp_path / "plain_written.pth").assumptions  # what was assumed is not written as told


def damaged(what: str) -> dict[str, Tensor]:
    state = dict(tiny_detector("cascade_mask_rcnn").state_dict())
    if what == "a layer is missing":
        del state["roi_head.bbox_head.1.shared_fcs.1.weight"]
    elif what == "a stage has another shape":
        state["roi_head.mask_head.2.upsample.weight"] = torch.zeros(8, 8, 3, 3)
    elif what == "a stage too many":
        state |= {k.replace("_head.2.", "_head.3."): v.clone() for k, v in state.items() if "_head.2." in k}
    elif what == "other anchors":
        for name, rows in (("rpn_cls", 9), ("rpn_reg", 36)):
            state[f"rpn_head.{name}.weight"], state[f"rpn_head.{name}.bias"] = (
                torch.zeros(rows, 8, 1, 1),
                torch.zeros(rows),
            )
    elif what == "Mask Scoring R-CNN":
        state["roi_head.mask_iou_head.fc_mask_iou.weight"] = torch.zeros(4, 8)
    return state


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a layer is missing", "bbox_head.1.shared_fcs.1.weight"),
        ("a stage has another shape", "mask_head.2.upsample.weight"),
        ("a stage too many", "4 stages"),
        ("other anchors", "9 anchors.* family='mmdet' loads the backbone and pyramid"),
        ("Mask Scoring R-CNN", "(?s)mask_iou_head.*family='mmdet' loads the backbone and pyramid"),
    ],
)
def test_damaged_files_are_refused(what: str, message: str) -> None:
    with pytest.raises(hf.CheckpointError, match=message):
        hf.load_checkpoint(damaged(what))
    if "family='mmdet'" in message:
        assert hf.load_checkpoint(damaged(what), family="mmdet").config.head.kind == "v2p"


def test_targets_that_cannot_hold_it(caplog: pytest.LogCaptureFixture) -> None:
    faster, cascade = (tiny_detector(kind).state_dict() for kind in ("faster_rcnn", "cascade_rcnn"))
    with pytest.raises(hf.CheckpointError, match="cannot be written as 'mmdet_cascade_rcnn'"):
        hf.convert_checkpoint(faster, to="mmdet_cascade_rcnn")
    pyramid = hf.convert_checkpoint(cascade, to="mmdet")
    with pytest.raises(hf.CheckpointError, match="cannot be written as 'mmdet_faster_rcnn'"):
        hf.convert_checkpoint(pyramid, to="mmdet_faster_rcnn")
    with pytest.raises(hf.CheckpointError, match="cannot be written as 'pose'"):
        hf.convert_checkpoint(cascade, to="pose")
    (note,) = caplog.messages  # of the conversion that was done
    assert "left out: " in note


def test_without_the_semantic_branch() -> None:
    model = tiny_detector("htc")
    config = dataclasses.replace(model.config, roi=dataclasses.replace(model.config.roi, semantic=None))
    state = {k: v for k, v in model.state_dict().items() if "semantic" not in k}
    loaded = hf.load_checkpoint(state)
    assert loaded.config.roi.semantic is None
    assert loaded.config.kind == "htc"
    assert loaded.config == config.override(norm_eval=True)
