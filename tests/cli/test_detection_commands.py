"""``train`` and ``eval`` of detectors: a run with its report, its checkpoint, and one of mmdetection's names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import call, checkpoint, refused
from made_objects import detector_recipe, detector_settings, save_objects

import hrnet_fast as hf
from hrnet_fast.cli.evaluate import load_network
from hrnet_fast.detection import Detector, make_detector_config
from hrnet_fast.metrics import COCODetectionAP
from hrnet_fast.trainer.build_task import build_task


def options(kind: str, *more: str) -> list[str]:
    return [word for setting in detector_settings(kind, *more) for word in ("--set", setting)]


@pytest.mark.traced
@pytest.mark.slow
def test_a_detector_is_trained_reported_and_evaluated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, run = save_objects(tmp_path / "data"), tmp_path / "run"
    command = ("train", "small/bccd", "--data", data, "--out", run, *options("mask_rcnn", "loop.epochs=1"))
    code, out, err = call(capsys, *command, "--log-every", 1, "--json")
    assert code == 0, err
    done = json.loads(out)
    assert set(done["best"]["raw"]) == {"AP"}
    assert done["report"] == [str(run / "curves.png"), str(run / "report.html")]
    page = (run / "report.html").read_text()
    assert "F1 score of these detections" in page
    assert page.count("data:image/png;base64,") == 1 + 4  # the curves; of five pictures one has no figure
    (recorded,) = (
        record
        for record in map(json.loads, (run / "log.jsonl").read_text().splitlines())
        if record["kind"] == "evaluation"
    )
    assert "mask_AP/dark" in recorded["figures"]
    results = tmp_path / "results.json"
    evaluate = ("eval", run / "final.pth", "--data", data, "--batch-size", 2, "--json")
    code, out, err = call(capsys, *evaluate, "--output", results)
    assert code == 0, err
    found = json.loads(out)
    assert found["family"] == "mmdet_mask_rcnn"
    assert found["figures"] == pytest.approx(recorded["figures"], rel=1e-3, abs=1e-4)
    assert "score_threshold" not in err  # the recipe's settings are used, and none is assumed
    entries = json.loads(results.read_text())
    metric = COCODetectionAP(data / "val.json", "segm")
    metric.update(entries)
    assert metric.compute()["AP"] == pytest.approx(found["figures"]["mask_AP"])
    # The file tells its settings, so pictures are detected as they were in training.
    loaded = hf.load_checkpoint(run / "best.pth")
    assert (loaded.config.rpn.anchors.scales, loaded.config.picture.short_side, loaded.assumptions) == ((4,), 48, ())
    assert hf.load_checkpoint(run / "best.pth", score_threshold=0.3).config.roi.score_threshold == 0.3
    code, out, err = call(capsys, *evaluate, "--engine", "on")
    assert code == 0, err
    assert json.loads(out)["ran"].startswith("engine")


@pytest.mark.slow
def test_other_detectors_are_evaluated_by_a_recipes_protocol(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of another kind or size than the recipe's: with the settings of its family, which are told."""
    data = save_objects(tmp_path / "data", count=2, parts=("val",))
    sizes = {"num_blocks": 1, "num_modules": (1, 1, 1), "stage1_blocks": 1, "channels": 8}
    base = ("--data", data, "--recipe", "small/bccd", *options("faster_rcnn"), "--json")
    for kind in ("cascade_rcnn", "faster_rcnn"):
        torch.manual_seed(0)
        detector = Detector(make_detector_config(kind, 4, 2, **sizes))
        hf.save_checkpoint(detector.state_dict(), tmp_path / f"{kind}.pth")
        code, out, err = call(capsys, "eval", tmp_path / f"{kind}.pth", *base)
        assert code == 0, err
        assert json.loads(out)["family"] == f"mmdet_{kind}"
        assert json.loads(out)["count"] == 2
        assert "score_threshold=0.05" in err
    hf.save_checkpoint(Detector(make_detector_config("fcos", 4, 5, **sizes)).state_dict(), tmp_path / "five.pth")
    assert "has 5 outputs and the data 2" in refused(capsys, "eval", tmp_path / "five.pth", *base[:-1])
    pose = checkpoint(tmp_path, "v1", "pose", 5)
    assert "a v1 head cannot do detection" in refused(capsys, "eval", pose, *base[:-1])


def test_a_file_of_mmdetection_1x_keeps_its_boxes_in_a_recipes_protocol(tmp_path: Path) -> None:
    """``legacy=True`` of the file is not replaced by the recipe's False, and the recipe's other settings are used."""
    data = save_objects(tmp_path / "data", count=2)
    task = build_task(detector_recipe("faster_rcnn"), data, device="cpu")
    early = task.config.override(legacy=True, score_threshold=0.3)
    hf.save_checkpoint(Detector(early).state_dict(), tmp_path / "early.pth", detector=early)
    found = load_network(tmp_path / "early.pth", task, None, {"impl": "reference"})
    assert found.config == task.config.override(legacy=True)
