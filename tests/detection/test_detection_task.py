"""The command ``run -t detection``: pictures and COCO's result format, by the model and by engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call, checkpoint, refused
from PIL import Image
from tiny_detectors import tiny_detector

import hrnet_fast as hf
from hrnet_fast.detection.coco_results import COCO_CATEGORIES, COCO_CLASSES, class_names, encode_mask
from hrnet_fast.errors import InputError


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.RandomState(0).randint(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "000123.png")
    return tmp_path / "000123.png"


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    model = tiny_detector("mask_rcnn")
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.bias[0] += 2.0  # scores above the threshold of 0.05
    hf.save_checkpoint(model.state_dict(), tmp_path / "detector.pth")
    return tmp_path / "detector.pth"


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["off", "on"])
def test_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path, detector: Path, engine: str) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    out = tmp_path / engine
    options = ("--labels", tmp_path / "names.txt", "--engine", engine, "--json")
    code, text, err = call(capsys, "run", photo, "-c", detector, "-t", "detection", "-o", out, *options)
    assert code == 0, err
    (result,) = json.loads(text)
    assert result["family"] == "mmdet_mask_rcnn"
    assert result["ran"].startswith("engine, float32" if engine == "on" else "model")
    assert "score_threshold=0.05" in err
    assert json.loads((out / "000123.png.json").read_text()) == result
    (found,) = hf.load_checkpoint(detector)([photo])
    assert len(result["detections"]) == len(found) > 0
    first = result["detections"][0]
    x1, y1, x2, y2 = found.boxes[0].tolist()
    assert first["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-2)
    assert first["score"] == pytest.approx(float(found.scores[0]), abs=1e-4)
    assert (first["image_id"], first["category"], first["category_id"]) == (123, "cat", 1)
    assert first["segmentation"]["size"] == [60, 90]
    with Image.open(out / "000123.png.png") as picture, Image.open(photo) as given:
        assert picture.size == given.size
        assert np.asarray(picture).tobytes() != np.asarray(given).tobytes()


def test_run_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path, detector: Path) -> None:
    out = tmp_path / "out"
    pose = checkpoint(tmp_path, "v1", "pose", 17)
    assert "(v1 head) cannot do detection" in refused(capsys, "run", photo, "-c", pose, "-t", "detection", "-o", out)
    assert "(mask_rcnn head) cannot do pose" in refused(capsys, "run", photo, "-c", detector, "-t", "pose", "-o", out)
    flip = ("run", photo, "-c", detector, "-t", "detection", "-o", out, "--flip")
    assert "detection does not use --flip" in refused(capsys, *flip)
    assert "detection does not use --in-channels" in refused(capsys, *flip[:-1], "--in-channels", "4")
    (tmp_path / "names.txt").write_text("cat\n")
    names = ("run", photo, "-c", detector, "-t", "detection", "-o", out, "--labels", tmp_path / "names.txt")
    assert "1 labels given for a network of 3 classes" in refused(capsys, *names)
    (tmp_path / "names.txt").write_text("\n")
    assert "has no labels" in refused(capsys, *names)


def test_info(capsys: pytest.CaptureFixture[str], detector: Path) -> None:
    """Parameters are the whole detector's; the operations say which part they are of."""
    code, text, err = call(capsys, "info", detector, "--json", "--size", "64x64")
    assert code == 0, err
    about = json.loads(text)
    assert about["detector"] == "mask_rcnn"
    assert about["parameters"] == sum(p.numel() for p in hf.load_checkpoint(detector).parameters())
    assert about["backbone_and_pyramid_gflops"] > 0
    assert "gflops" not in about
    _, text, _ = call(capsys, "info", detector, "--size", "64x64")
    assert "backbone_and_pyramid_gflops" in text


def test_class_names() -> None:
    assert len(COCO_CLASSES) == len(COCO_CATEGORIES) == len(set(COCO_CLASSES)) == 80
    assert dict(zip(COCO_CLASSES, COCO_CATEGORIES, strict=True))["stop sign"] == 13
    assert class_names(80) == (COCO_CLASSES, COCO_CATEGORIES)
    assert class_names(2) == (("0", "1"), (1, 2))
    assert class_names(1, ["cell"]) == (("cell",), (1,))
    with pytest.raises(InputError, match="2 labels"):
        class_names(80, ["a", "b"])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_masks_are_encoded_as_pycocotools_does(share: float) -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    for size in ((1, 1), (37, 53), (300, 400)):
        mask = np.random.RandomState(1).rand(*size) < share
        expected = mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode_mask(mask) == {"size": list(size), "counts": expected["counts"].decode()}
