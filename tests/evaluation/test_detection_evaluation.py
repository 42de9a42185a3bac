"""Detection: figures as pycocotools computes them, figures of pictures, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_samples import picture, recipe
from torch import Tensor

from hrnet_fast import datasets
from hrnet_fast.detection import Detections
from hrnet_fast.detection.coco_results import encode_mask
from hrnet_fast.errors import InputError
from hrnet_fast.evaluation import evaluate_detection
from hrnet_fast.evaluation.detection import check_detection_evaluation, picture_f1

NAMES = ("bee", "fly", "moth")
COUNT, SIZE = 6, (80, 120)


def masks_in(boxes: np.ndarray) -> np.ndarray:
    """Ellipses that fill boxes."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    across = (x - middle[:, :1, None]) / half[:, :1, None]
    down = (y - middle[:, 1:, None]) / half[:, 1:, None]
    return np.square(across) + np.square(down) <= 1


def objects(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of a picture; the last one has none."""
    draw = np.random.default_rng(index)
    count = 0 if index == COUNT - 1 else 4
    corners, sides = draw.uniform(0, 60, (count, 2)), draw.uniform(8, 20, (count, 2)) * 2 ** draw.integers(0, 2)
    return np.concatenate([corners, np.minimum(corners + sides, SIZE[::-1])], 1), draw.integers(0, 2, count)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    annotations: list[dict[str, Any]] = []
    for i in range(COUNT):
        picture(folder / f"{i}.png", *SIZE, i)
        boxes, labels = objects(i)
        for k, (box, label, mask) in enumerate(zip(boxes, labels, masks_in(boxes), strict=True)):
            area = float(mask.sum())
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": i, "category_id": 2 * int(label) + 1, "area": area,
                    "bbox": [*box[:2], *(box[2:] - box[:2])], "iscrowd": int(k == 3), "segmentation": encode_mask(mask),
                }
            )  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(COUNT)]
    categories = [{"id": 2 * i + 1, "name": name} for i, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "objects.json").write_text(json.dumps(content))
    return folder


class MadeDetector:
    """Answers with objects that are moved, some of another class, and with boxes of nothing; best first."""

    def __init__(self, *, masks: bool, empty: bool = False, label: int | None = None) -> None:
        self.masks, self.empty, self.label, self.next = masks, empty, label, 0

    def __call__(self, pictures: Sequence[Tensor]) -> list[Detections]:
        return [self.one(image) for image in pictures]

    def one(self, image: Tensor) -> Detections:
        assert image.shape == (*SIZE, 3)
        draw = np.random.default_rng(100 + self.next)
        boxes, labels = objects(self.next)
        self.next += 1
        boxes = np.concatenate([boxes + draw.normal(0, 2, boxes.shape), [[5, 5, 40, 40], [50, 20, 70, 60]]])
        labels = np.append(np.where(draw.random(len(labels)) < 0.8, labels, 1 - labels), [0, 2])
        if self.empty:
            boxes, labels = boxes[:0], labels[:0]
        scores = np.sort(draw.random(len(labels)))[::-1]
        found = [
            torch.from_numpy(part.copy()) for part in (boxes, scores, labels if self.label is None else labels + 9)
        ]
        return Detections(*found, torch.from_numpy(masks_in(boxes)) if self.masks else None)  # type: ignore[arg-type]


def evaluated(data: Path, network: Any, part: Sequence[int] = range(COUNT), **options: Any) -> Any:
    dataset = datasets.coco_instances(data / "objects.json", data).subset(part)
    return evaluate_detection(network, dataset, recipe(metric="detection_ap"), "cpu", batch_size=4, **options)


@pytest.mark.parametrize("masks", [False, True])
def test_figures_are_those_of_pycocotools(data: Path, masks: bool) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    done: list[tuple[int, int]] = []
    found = evaluated(data, MadeDetector(masks=masks), progress=lambda *state: done.append(state))
    results = [entry for sample in found.samples for entry in sample.answer["detections"]]
    names = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL")
    for kind, prefix in (("bbox", ""), ("segm", "mask_")) if masks else (("bbox", ""),):
        # As in mmdetection, the area of a detected mask is its own and not its box's.
        given = [{k: v for k, v in entry.items() if k != "bbox" or kind == "bbox"} for entry in results]
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(data / "objects.json"))
            loaded = truth.loadRes(given)
            whole = COCOeval(truth, loaded, kind)
            whole.evaluate()
            whole.accumulate()
            whole.summarize()
            of_fly = COCOeval(truth, loaded, kind)
            of_fly.params.catIds = [3]
            of_fly.evaluate()
            of_fly.accumulate()
            of_fly.summarize()
        assert 0.2 < whole.stats[0] < 0.9
        assert [found.figures[prefix + name] for name in names] == pytest.approx(whole.stats.tolist(), abs=1e-12)
        assert found.figures[f"{prefix}AP/fly"] == pytest.approx(of_fly.stats[0], abs=1e-12)
        assert f"{prefix}AP/moth" not in found.figures  # none is annotated
    assert ("mask_AP" in found.figures) == masks
    assert (found.count, done) == (COUNT, [(4, COUNT), (COUNT, COUNT)])


def test_no_detections_and_a_part_of_the_data(data: Path) -> None:
    found = evaluated(data, MadeDetector(masks=False, empty=True))
    assert (found.figures["AP"], found.figures["AR100"]) == (0, 0)
    assert np.isnan(found.samples[-1].figure)
    assert found.samples[0].figure == 0
    part = evaluated(data, MadeDetector(masks=False), part=(0, 1))
    whole = evaluated(data, MadeDetector(masks=False))
    assert part.figures != whole.figures
    assert part.samples == whole.samples[:2]


def test_objects_of_skipped_pictures_do_not_count(data: Path, tmp_path: Path) -> None:
    """The figures are those of the pictures that can be read."""
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(b"broken" if file.name == "2.png" else file.read_bytes())

    def found(folder: Path, part: Sequence[int]) -> Any:
        dataset = datasets.coco_instances(folder / "objects.json", folder, skip_broken=True).subset(part)
        return evaluate_detection(MadeDetector(masks=True), dataset, recipe(metric="detection_ap"), "cpu")

    broken, whole = found(tmp_path, (0, 1, 2)), found(data, (0, 1))
    assert (broken.count, broken.skipped) == (2, 1)
    assert broken.figures == whole.figures


def test_the_figure_of_a_picture() -> None:
    """Two objects and three detections above 0.5; one object is found, and the second detection of it is wrong."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    given = torch.tensor([[0.0, 0, 10, 9], [0, 0, 9, 10], [20, 20, 30, 30], [20, 20, 30, 30]])
    found = Detections(given, torch.tensor([0.9, 0.8, 0.7, 0.4]), torch.tensor([0, 0, 1, 0]))
    assert picture_f1(found, boxes, torch.tensor([0, 0])) == pytest.approx(2 / 5)
    none = Detections(given[:0], torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert picture_f1(none, boxes, torch.tensor([0, 0])) == 0
    assert picture_f1(found, boxes[:0], torch.zeros(0)) == 0


def test_refusals(data: Path) -> None:
    with pytest.raises(InputError, match="a detection of class 11, and data of 3 classes"):
        evaluated(data, MadeDetector(masks=False, label=9))
    with pytest.raises(InputError, match="no sample is left"):
        evaluated(data, MadeDetector(masks=False), part=())
    dataset = datasets.coco_instances(data / "objects.json", data)
    with pytest.raises(InputError, match="accepted is 'detection_ap'"):
        evaluate_detection(MadeDetector(masks=False), dataset, recipe(metric="miou"), "cpu")
    with pytest.raises(InputError, match="evaluator"):
        check_detection_evaluation(dataset, None, recipe(metric="detection_ap", metric_options={"evaluator": "x"}))  # type: ignore[arg-type]
