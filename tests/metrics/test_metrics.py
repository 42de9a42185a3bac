"""Metrics by hand: their figures on a few values, what does not count, and what they refuse."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_predictions import poses
from torch import Tensor

from hrnet_fast import metrics
from hrnet_fast.errors import InputError
from hrnet_fast.keypoints import KEYPOINT_SETS

NAN = float("nan")


def grid(*distances: float) -> tuple[Tensor, Tensor]:
    """Return points [1, K, 2] at these distances from targets of 0."""
    return torch.tensor([[[0.6 * d, -0.8 * d] for d in distances]], dtype=torch.float64), torch.zeros(
        1, len(distances), 2
    )


def test_oks_by_hand() -> None:
    points, targets = grid(0, 3, 100)
    visible = torch.tensor([[2, 1, 0]])
    # exp(-9 / (2 * 50 * 0.2**2)) for the second; the third does not count.
    expected = (1 + math.exp(-9 / 4)) / 2
    found = metrics.oks(points, targets, torch.tensor([50.0]), (0.1, 0.1, 0.3), visible)
    assert found.tolist() == pytest.approx([expected], rel=1e-12)
    assert metrics.oks(points, targets, torch.tensor([50.0]), (0.1,) * 3, 0 * visible).tolist() == [0]


def test_scores_of_poses_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.2], [0.1, 0.2, 0.0]], dtype=torch.float64)
    assert metrics.rescore_poses(scores, torch.tensor([0.5, 0.5])).tolist() == pytest.approx([0.35, 0])


def test_pck_by_hand() -> None:
    points, targets = grid(1, 2, 5, 3)
    points[0, 3] = NAN  # a point without a value is wrong
    visible = torch.tensor([[1, 1, 1, 1]])
    pixels = metrics.PCK((2.0, 5.0))
    pixels.update(points, targets, visible)
    assert pixels.compute() == {"pck@2": 0.25, "pck@5": 0.5}
    inclusive = metrics.PCK((2.0, 5.0), inclusive=True)
    inclusive.update(points, targets)
    assert inclusive.compute() == {"pck@2": 0.5, "pck@5": 0.75}
    shares = metrics.PCK((0.3,))
    shares.update(points, targets, visible, sizes=torch.tensor([10.0]))
    assert shares.compute() == {"pck@0.3": 0.5}


def test_means_over_keypoints_and_over_points() -> None:
    """The first keypoint is right in one of one image, the second in one of three; the third is never visible."""
    points = torch.tensor([[0.0, 0, 9], [9, 9, 9], [9, 9, 9]]).unsqueeze(2).expand(3, 3, 2)
    visible = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 0]])
    for mean, share in (("keypoints", (1 + 1 / 3) / 2), ("points", 0.5)):
        metric = metrics.PCK((1.0,), mean=mean)
        metric.update(points, torch.full_like(points, NAN).where(visible.unsqueeze(2) == 0, 0.0), visible)
        assert metric.compute()["pck@1"] == pytest.approx(share)
        assert metric.per_keypoint()[1.0] == pytest.approx([1, 1 / 3, NAN], nan_ok=True)


def test_pixel_errors_by_hand() -> None:
    points, targets = grid(3, 4, 1000)
    targets[0, 2] = NAN
    metric = metrics.PixelError()
    metric.update(points, targets, torch.tensor([[1, 1, 0]]))
    assert metric.compute() == pytest.approx({"rmse": math.sqrt(12.5), "mean_error": 3.5})
    assert metric.per_keypoint() == pytest.approx([3, 4, NAN], nan_ok=True)


def test_nme_by_hand() -> None:
    """Errors of 0.05 and 0.09: one failure at 0.08, areas of mean(max(0, 1 - e / t))."""
    points = torch.tensor([[[0, 0.5], [10, 0.5]], [[0, 1.8], [10, 0]]], dtype=torch.float64)
    targets = torch.tensor([[[0.0, 0], [10, 0]]] * 2)
    metric = metrics.NME((0, 1))
    metric.update(points, targets, ids=[7, 3])
    assert metric.per_image() == pytest.approx({7: 0.05, 3: 0.09})
    expected = {"nme": 0.07, "failure@0.08": 0.5, "auc@0.08": 0.1875, "failure@0.1": 0, "auc@0.1": 0.3}
    assert metric.compute() == pytest.approx(expected)


def test_confusion_matrix_by_hand() -> None:
    """Class 2 never occurs, class 1 is predicted once and never labelled; 255 does not count."""
    labels = torch.tensor([[[0, 0, 3, 3], [3, 255, 255, 3]]])
    classes = torch.tensor([[[0, 1, 3, 3], [0, 1, 9, 3]]])
    figures = {}
    for absent in ("zero", "skip"):
        metric = metrics.ConfusionMatrix(4, absent=absent, names=("road", "car", "train", "sky"))
        metric.update(classes, labels)
        figures[absent] = metric.compute()
    assert metric.matrix().tolist() == [[1, 1, 0, 0], [0] * 4, [0] * 4, [1, 0, 0, 3]]
    assert metric.per_class() == pytest.approx({"road": 1 / 3, "car": 0, "train": NAN, "sky": 0.75}, nan_ok=True)
    ties = metrics.ConfusionMatrix(4)
    ties.update(torch.tensor([0.0, 1, 1, 0]).view(1, 4, 1, 1), torch.tensor([[[3]]]))
    assert ties.matrix()[3].tolist() == [0, 1, 0, 0]
    total = 1 / 3 + 0.75
    assert figures["zero"] == pytest.approx({"miou": total / 4, "mean_accuracy": 1.25 / 4, "pixel_accuracy": 4 / 6})
    assert figures["skip"] == pytest.approx({"miou": total / 3, "mean_accuracy": 1.25 / 2, "pixel_accuracy": 4 / 6})


def test_top_k_by_hand() -> None:
    metric = metrics.TopKAccuracy((1, 2))
    metric.update(torch.tensor([[3.0, 2, 1], [1, 2, 3], [1, 3, 2]]), torch.tensor([0, 0, 2], dtype=torch.int32))
    assert metric.compute() == pytest.approx({"top1": 1 / 3, "top2": 2 / 3})


def test_boxes_and_masks_by_hand(tmp_path: Path) -> None:
    """One object found exactly and one not at all: half of the recall, at every overlap. An id of 0 counts."""
    square = {"size": [40, 40], "counts": [0, 400, 1200]}  # columns 0 to 9
    annotations = [
        {"id": i, "image_id": 5, "category_id": 2, "iscrowd": 0, "area": 400, "bbox": [10 * i, 0, 10, 40],
         "segmentation": square if i == 0 else {"size": [40, 40], "counts": [800, 400, 400]}}
        for i in (0, 2)
    ]  # fmt: skip
    content = {
        "images": [{"id": 5, "width": 40, "height": 40}],
        "annotations": annotations,
        "categories": [{"id": 2, "name": "a"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    from pycocotools import mask

    encoded = mask.frPyObjects(square, 40, 40)
    result = {"image_id": 5, "category_id": 2, "score": 0.5, "bbox": [0, 0, 10, 40], "segmentation": encoded}
    for kind in ("bbox", "segm"):
        for evaluator in ("faster-coco-eval", "pycocotools"):
            metric = metrics.COCODetectionAP(tmp_path / "instances.json", kind, evaluator=evaluator)
            assert metric.compute()["AP"] == 0  # nothing found
            metric.update([result])
            figures = metric.compute()
            # Of 101 recalls, 0 to 0.5 are reached with precision 1.
            assert (figures["AP"], figures["AR100"], figures["APL"]) == (pytest.approx(51 / 101), 0.5, -1)
            assert metric.compute() == figures


def coco(**changes: Any) -> metrics.COCOKeypointAP:
    return metrics.COCOKeypointAP(poses()[0], **changes)


def test_other_keypoints_with_given_sigmas() -> None:
    """Two keypoints at 0.6 of their sigma's distance: an overlap of exp(-0.18), counted up to 0.8."""
    scale = 0.6 * 2 * 0.1 * math.sqrt(5000)
    person = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 5000.0, "bbox": [0, 0, 100, 50]}
    person |= {"num_keypoints": 2, "keypoints": [10, 10, 2, 60, 40, 2]}
    annotations = {
        "images": [{"id": 1, "width": 99, "height": 99}],
        "annotations": [person],
        "categories": [{"id": 1, "name": "a"}],
    }
    for evaluator in ("faster-coco-eval", "pycocotools"):
        metric = metrics.COCOKeypointAP(annotations, sigmas=(0.1, 0.1), evaluator=evaluator)
        points = torch.tensor([[[10 + scale, 10], [60, 40 - scale]]], dtype=torch.float64)
        metric.update(points, torch.ones(1, 2), [1], torch.tensor([5000.0]))
        assert metric.compute()["AP"] == pytest.approx(0.7)
    assert "ignore" not in person  # what the evaluators add to annotations


def test_without_an_evaluator_the_error_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("faster_coco_eval", "pycocotools", "pycocotools.coco"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"faster-coco-eval .* or pycocotools .*pip install"):
        coco()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert coco().compute()["AP"] == 0  # by pycocotools


P, T = torch.zeros(2, 17, 2), torch.zeros(2, 16, 2)
S, A = torch.zeros(2, 17), torch.zeros(2)
BAD: dict[str, Callable[[], object]] = {
    "3 numbers": lambda: metrics.oks(torch.zeros(2, 17, 3), P, A),
    "sigmas": lambda: metrics.oks(T, T, A),
    "sigma of 0": lambda: metrics.oks(P, P, A, [0] * 17),
    "scores": lambda: metrics.oks_nms(P, S, A),
    "threshold": lambda: metrics.soft_oks_nms(P, A, A, 0.0),
    "box scores": lambda: metrics.rescore_poses(S, S),
    "no file": lambda: metrics.COCOKeypointAP("nowhere.json"),
    "no COCO": lambda: metrics.COCODetectionAP({"images": []}),
    "kind": lambda: metrics.COCODetectionAP(poses()[0], "keypoints"),
    "evaluator": lambda: coco(evaluator="coco"),
    "suppression": lambda: coco(suppression="hard"),
    "no box": lambda: metrics.COCODetectionAP(poses()[0]).update([{"image_id": 1}]),
    "16 keypoints": lambda: coco().update(T, S[:, :16], [1, 1], A),
    "one image": lambda: coco().update(P, S, [1], A),
    "unknown image": lambda: computed(coco(), P, S, [1, 77], A),
    "NaN pose": lambda: computed(coco(), P + NAN, S, [1, 1], A),
    "thresholds": lambda: metrics.PCK((0.0,)),
    "mean": lambda: metrics.PCK(mean="all"),
    "targets": lambda: metrics.PCK().update(P, T),
    "visible": lambda: metrics.PixelError().update(P, P, A),
    "sizes": lambda: metrics.PCK().update(P, P, None, S),
    "size of 0": lambda: computed(metrics.PCK(), P, P, None, A),
    "head boxes": lambda: metrics.PCKh().update(T, T, None, A),
    "keypoints change": lambda: (m := metrics.PCK(), m.update(P, P), m.update(T, T)),
    "landmarks": lambda: metrics.NME("eyes"),
    "landmark 17": lambda: metrics.NME((0, 17)).update(P, P),
    "unknown set": lambda: metrics.NME().update(P, P),
    "sizes missing": lambda: metrics.NME("size").update(P, P),
    "sizes not in use": lambda: metrics.NME((0, 1)).update(P, P, A),
    "no interocular distance": lambda: computed(metrics.NME((0, 1)), P, P),
    "an id twice": lambda: computed(metrics.NME("size"), P, P, A + 1, [4, 4]),
    "absent": lambda: metrics.ConfusionMatrix(3, absent="nan"),
    "names": lambda: metrics.ConfusionMatrix(3, names=("a",)),
    "small logits": lambda: metrics.ConfusionMatrix(3).update(torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8).long()),
    "float labels": lambda: metrics.ConfusionMatrix(3).update(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)),
    "label 3": lambda: computed(metrics.ConfusionMatrix(3), torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 3)),
    "class -1": lambda: computed(metrics.ConfusionMatrix(3), torch.full((1, 2, 2), -1), torch.ones(1, 2, 2).int()),
    "ks": lambda: metrics.TopKAccuracy((0,)),
    "few classes": lambda: metrics.TopKAccuracy().update(torch.zeros(2, 3), torch.zeros(2).long()),
    "nothing": lambda: metrics.TopKAccuracy().compute(),
    "other settings": lambda: metrics.PCK().merge(metrics.PCK((0.5,))),
    "other metric": lambda: metrics.PCK().merge(metrics.PixelError()),  # type: ignore[type-var]
}  # fmt: skip


def computed(metric: Any, *batch: Any) -> object:
    metric.update(*batch)
    return metric.compute()


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str) -> None:
    with pytest.raises(InputError) as raised:
        BAD[case]()
    assert "\n" not in str(raised.value)


def test_sigmas_are_pycocotools() -> None:
    from pycocotools.cocoeval import Params

    assert list(KEYPOINT_SETS["coco"].sigmas) == Params("keypoints").kpt_oks_sigmas.tolist()
