"""Metrics of made predictions equal what the authors' code and mmpose gave for them."""

from __future__ import annotations

import math

import pytest
import torch
from made_predictions import FACES, classification, faces, golden, mpii, peaks, poses, segmentation

from hrnet_fast import metrics
from hrnet_fast.metrics.coco_files import EVALUATORS


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize(("suppression", "threshold"), [("oks", 0.9), ("oks", 0.5), ("soft", 0.9), ("soft", 0.5)])
def test_keypoint_ap(suppression: str, threshold: float, evaluator: str) -> None:
    annotations, found = poses()
    metric = metrics.COCOKeypointAP(annotations, suppression=suppression, oks_threshold=threshold, evaluator=evaluator)
    for part in (slice(None, 30), slice(30, None)):
        metric.update(**{name: value[part] for name, value in found.items()})
    assert list(metric.compute().values()) == pytest.approx(golden()[f"coco_{suppression}_{threshold:g}"], abs=1e-12)
    if (suppression, threshold) == ("oks", 0.9):
        assert [pose["score"] for pose in metric.results()] == pytest.approx(golden()["coco_scores"], rel=1e-6)


@pytest.mark.parametrize("threshold", [0.9, 0.5])
def test_suppression(threshold: float) -> None:
    """Of all poses as if they were in one image, so that the limit of 20 is met."""
    _, found = poses()
    given = (found["points"], found["box_scores"], found["areas"], threshold)
    assert metrics.oks_nms(*given) == golden()[f"kept_oks_{threshold:g}"].tolist()
    assert metrics.soft_oks_nms(*given) == golden()[f"kept_soft_{threshold:g}"].tolist()


def test_oks() -> None:
    _, found = poses()
    points, areas = found["points"].double(), found["areas"]
    similarity = metrics.oks(points[:8, None], points[None], (areas[:8, None] + areas[None]) / 2)
    torch.testing.assert_close(similarity, torch.from_numpy(golden()["oks"]), rtol=1e-12, atol=1e-14)


def test_pckh() -> None:
    metric = metrics.PCKh()
    made = mpii()
    for part in (slice(0, 7), slice(7, 40)):
        metric.update(**{name: value[part] for name, value in made.items()})
    figures = metric.compute()
    names = ("head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "mean@0.5", "mean@0.11")
    assert [100 * figures[name] for name in names] == pytest.approx(golden()["pckh"], rel=1e-12)
    assert figures["mean@0.1"] < figures["mean@0.11"]


def test_pck() -> None:
    made, metric = mpii(), metrics.PCK((0.05, 0.1, 0.2))
    boxes = made.pop("head_boxes")
    metric.update(**made, sizes=(boxes[:, 2:] - boxes[:, :2]).amax(1))
    assert list(metric.compute().values()) == pytest.approx(golden()["pck"], rel=1e-12)


def test_pck_of_heatmaps() -> None:
    """The authors' training log: x over a tenth of the height, y of the width, without the first two pixels."""
    points, targets = peaks()
    metric = metrics.PCK((0.5,))
    metric.update(points, targets, (targets > 1).all(2), sizes=torch.tensor([[2.4, 1.6]]).expand(9, 2))
    assert metric.compute()["pck@0.5"] == pytest.approx(golden()["pck_heatmaps"].item(), rel=1e-12)


@pytest.mark.parametrize("name", FACES)
def test_nme(name: str) -> None:
    made, metric = faces(name), metrics.NME()
    if name != "aflw":
        del made["sizes"]
    for part in (slice(0, 16), slice(16, 50)):
        metric.update(**{key: value[part] for key, value in made.items()})
    figures = metric.compute()
    measured = [figures[key] for key in ("nme", "failure@0.08", "failure@0.1")]
    assert measured == pytest.approx(golden()[f"nme_{name}"], abs=1e-7)
    assert list(metric.per_image().values()) == pytest.approx(golden()[f"nme_{name}_faces"], rel=1e-6)


def test_segmentation() -> None:
    metric = metrics.ConfusionMatrix(7)
    for logits, labels in segmentation():
        metric.update(logits, labels)
    assert list(metric.compute().values()) == pytest.approx(golden()["segmentation"], rel=1e-14)
    ious = list(metric.per_class().values())
    assert math.isnan(ious.pop(5))
    assert ious == pytest.approx([iou for i, iou in enumerate(golden()["segmentation_ious"]) if i != 5], rel=1e-14)


def test_classification() -> None:
    logits, labels = classification()
    metric = metrics.TopKAccuracy()
    for part in (slice(0, 40), slice(40, 96)):
        metric.update(logits[part], labels[part])
    assert [100 * share for share in metric.compute().values()] == pytest.approx(golden()["classification"], rel=1e-6)
