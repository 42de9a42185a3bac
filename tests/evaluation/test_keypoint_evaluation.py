"""Keypoints: recorded heatmaps and checkpoints give the authors' points, and settings are heeded or refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import golden_data
import numpy as np
import pytest
import torch
from made_samples import answers, keypoint_dataset, picture, recipe
from scipy.io import savemat
from tiny_networks import relative_l2, tiny
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast import datasets
from hrnet_fast.errors import InputError
from hrnet_fast.evaluation import evaluate_keypoints
from hrnet_fast.keypoints import encode_keypoints, fit_box, to_input
from hrnet_fast.metrics import COCOKeypointAP, PCKh

BOXES = torch.tensor([[8.0, 6.0, 40.0, 60.0], [20.0, 10.0, 70.0, 30.0], [-5.0, 30.0, 50.0, 50.0]])


def golden(name: str) -> dict[str, Tensor]:
    with np.load(golden_data.FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


class Recorded:
    """A network that gives recorded heatmaps in the order of calls; of a flip test, those of the mirror image last."""

    def __init__(self, *maps: Tensor) -> None:
        self.maps = list(maps)
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(tuple(x.shape))
        count = len(x) // len(self.maps)
        given = torch.cat([maps[:count] for maps in self.maps])
        self.maps = [maps[count:] for maps in self.maps]
        return given


@pytest.mark.parametrize("batch_size", [2, 3])
def test_recorded_heatmaps_give_the_authors_points(tmp_path: Path, batch_size: int) -> None:
    data = golden("coordinates")
    size = 200 * data["pose_scale"]
    boxes = torch.cat([data["pose_center"] - size / 2, size], dim=1)
    dataset = keypoint_dataset(tmp_path, boxes, 17, (320, 240))
    crops = datasets.KeypointCrops((256, 192), (64, 48), padding=1.0, flip_pairs=[(i, i + 1) for i in range(1, 17, 2)])
    found = evaluate_keypoints(
        Recorded(data["pose_heatmaps"]), dataset, crops, recipe("pck"), "cpu", batch_size=batch_size
    )
    points, scores = answers(found.samples)
    seen = scores > 0  # where nothing is positive the authors say pixel (0, 0)
    assert (points - data["authors_pose_points"])[seen].abs().max() < 2e-3
    assert torch.equal(scores, data["authors_pose_values"][..., 0])

    network = Recorded(data["pose_heatmaps"], data["authors_flip_input"])
    found = evaluate_keypoints(network, dataset, crops, recipe("pck", flip=True), "cpu", batch_size=batch_size)
    assert network.calls[0] == (2 * batch_size, 3, 256, 192)
    expected, values = hf.decode_keypoints(data["authors_flip_shifted_mean"], (256, 192))
    points, scores = answers(found.samples)
    torch.testing.assert_close(points, hf.keypoints.to_image(expected, boxes, (256, 192)), rtol=0, atol=2e-3)
    assert torch.equal(scores, values)


def test_recorded_faces_give_the_authors_whole_pixels(tmp_path: Path) -> None:
    data = golden("coordinates")
    size = 200 * data["face_scale"][:, None].expand(2, 2)
    boxes = torch.cat([data["face_center"] - size / 2, size], dim=1)
    dataset = keypoint_dataset(tmp_path, boxes, 19, (200, 240))
    crops = datasets.KeypointCrops((256, 256), (64, 64), "face", padding=1.0)
    network = Recorded(data["face_heatmaps"])
    found = evaluate_keypoints(network, dataset, crops, recipe("nme", decode="face", whole_pixels=True), "cpu")
    assert torch.equal(answers(found.samples)[0], data["authors_face_points"])
    errors = (data["authors_face_points"].double() - torch.from_numpy(dataset.points).double()).norm(dim=2).mean(1)
    errors = errors / torch.tensor([50.0, 51.0])  # of 19 points, AFLW's: the sizes of the boxes
    assert [sample.figure for sample in found.samples] == pytest.approx(errors.tolist(), rel=1e-6)
    assert found.figures["nme"] == pytest.approx(errors.mean().item(), rel=1e-6)


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("official_pose_w32", "msra"), ("official_face_w18", "face")])
def test_golden_checkpoints(name: str, method: str, tmp_path: Path) -> None:
    """Their inputs are no pictures: they take the crops' place."""
    case = golden_data.load_case(name)
    expected = case.expected_outputs[0]
    size, heatmap = case.input_shape[2:], expected.shape[2:]

    class GivenInputs(datasets.KeypointCrops):
        def __call__(self, batch: Any, generator: Any = None) -> Any:
            return dataclasses.replace(super().__call__(batch), images=golden_data.image(case.input_shape))

    network = hf.load_checkpoint(case.state())
    maps: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        maps.append(network(x))
        return maps[-1]

    watched.keypoints = network.keypoints  # type: ignore[attr-defined]
    dataset = keypoint_dataset(tmp_path, torch.tensor([[0.0, 0.0, 64.0, 64.0]]), expected.shape[1])
    crops = GivenInputs(size, heatmap, method, padding=1.0)
    found = evaluate_keypoints(watched, dataset, crops, recipe("pck", metric_options={"size": "pixels"}), "cpu")
    assert network.keypoints == method
    assert relative_l2(maps[0], expected) < 1e-4
    points, scores = hf.decode_keypoints(expected, size, method)
    torch.testing.assert_close(answers(found.samples)[0], points.float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(answers(found.samples)[1], scores.float(), rtol=1e-3, atol=1e-3)


def test_figures_of_own_keypoints(tmp_path: Path) -> None:
    """Against the definitions written out, on what a network of random weights predicts."""
    dataset = keypoint_dataset(tmp_path, BOXES, 3, flip_pairs=[(0, 1)])
    crops = datasets.KeypointCrops((64, 64), (16, 16), flip_pairs=dataset.flip_pairs)
    network = tiny("v1").double()
    calls: list[Tensor] = []

    def doubled(x: Tensor) -> Tensor:
        calls.append(x)
        return network(x.double())

    results = [
        evaluate_keypoints(
            doubled, dataset, crops, recipe("pck", flip=True), "cpu", batch_size=size, workers=workers
        )
        for size, workers in ((1, 0), (2, 1), (32, 0))
    ]  # fmt: skip
    assert results[0].count == 3
    assert [len(x) for x in calls] == [2, 2, 2, 4, 2, 6]
    assert results[1] == results[2]
    for name, value in results[0].figures.items():
        assert value == pytest.approx(results[1].figures[name], rel=1e-9), name
    points = answers(results[0].samples)[0].double()
    seen = torch.from_numpy(dataset.visible) > 0
    distances = (points - torch.from_numpy(dataset.points)).norm(dim=2)
    sides = BOXES[:, 2:].amax(1)
    expected = [(distances[i][seen[i]].mean() / sides[i]).item() for i in range(3)]
    assert [sample.figure for sample in results[0].samples] == pytest.approx(expected, rel=1e-5)
    assert results[0].figures["rmse"] == pytest.approx(distances[seen].square().mean().sqrt().item(), rel=1e-5)
    shares = (distances / sides[:, None] < 0.2) & seen
    assert results[0].figures["pck@0.2"] == pytest.approx((shares.sum(0) / seen.sum(0)).mean().item())
    paths = [sample.path for sample in results[0].samples]
    assert paths == [str(tmp_path / f"{i}.png") for i in range(3)]


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    dataset = keypoint_dataset(tmp_path, BOXES, 3)
    crops = datasets.KeypointCrops((64, 64), (16, 16))

    def refused(says: str, network: Any = None, data: Any = dataset, made: Any = crops, **changes: Any) -> None:
        settings = {"metric": "pck"} | changes
        with pytest.raises(InputError, match=says):
            evaluate_keypoints(network or tiny("v1"), data, made, recipe(**settings), "cpu")

    refused("training mode; call its eval", tiny("v1").train())
    refused("metric='miou'; accepted are coco, pckh, pck, nme", metric="miou")
    refused("pairs of keypoints that mirroring swaps are not known", flip=True)
    refused("network asks for 'msra' and crops are made by 'udp'", made=dataclasses.replace(crops, method="udp"))
    refused("evaluation.decode asks for 'udp'", decode="udp")
    refused("5 heatmaps and the data 3", tiny("v1", 5))
    refused("'sigma' given; PCK takes thresholds, mean, inclusive", metric_options={"sigma": 1})
    refused("metric='coco' needs annotations", metric="coco")
    refused("returns .*accepted is a tensor", lambda x: x.mean())
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    dataset.skip_broken = True
    refused("no sample is left to evaluate, 3 were skipped")
    assert len(dataset.skipped) == 3


def test_coco_figures_of_detections(tmp_path: Path) -> None:
    """Two boxes of a person, of which one pose is suppressed, and one beside it; areas are those of enlarged boxes."""
    keypoints = np.random.default_rng(0).uniform((20, 20), (60, 70), (17, 2)).round()
    picture(tmp_path / "7.png", 90, 80)
    person = {
        "id": 1, "image_id": 7, "category_id": 3, "bbox": [18, 18, 44, 54], "area": 2000, "iscrowd": 0,
        "num_keypoints": 17, "keypoints": np.column_stack([keypoints, np.full(17, 2)]).ravel().tolist(),
    }  # fmt: skip
    annotations = {
        "images": [{"id": 7, "width": 80, "height": 90, "file_name": "7.png"}],
        "categories": [{"id": 3, "name": "person", "keypoints": list(hf.keypoints.KEYPOINT_SETS["coco"].names)}],
        "annotations": [person],
    }
    boxes = [[18.0, 18, 44, 54], [16.0, 20, 46, 50], [0.0, 0, 20, 20]]
    found = [
        {"image_id": 7, "category_id": 3, "bbox": box, "score": score}
        for box, score in zip(boxes, (0.8, 0.9, 0.95), strict=True)
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    (tmp_path / "found.json").write_text(json.dumps(found))
    dataset = datasets.coco_keypoints(
        tmp_path / "annotations.json", tmp_path, detections=tmp_path / "found.json", category="person"
    )
    crops = datasets.KeypointCrops((128, 96), (32, 24), flip_pairs=dataset.flip_pairs)
    fitted = torch.tensor([fit_box(tuple(box), (128, 96)) for box in boxes])
    inputs = to_input(torch.from_numpy(keypoints).float().expand(3, 17, 2), fitted, (128, 96))
    maps = encode_keypoints(inputs, torch.ones(3, 17), (128, 96), (32, 24))[0]
    maps[2] = maps[0].flip(1, 2)
    evaluated = evaluate_keypoints(Recorded(maps), dataset, crops, recipe("coco"), "cpu", batch_size=2)
    assert all(math.isnan(sample.figure) for sample in evaluated.samples), "a detection has no annotation of its own"

    points, scores = answers(evaluated.samples)
    metric = COCOKeypointAP(annotations, category_id=3)
    areas = fitted[:, 2] * fitted[:, 3]
    metric.update(points, scores, [7, 7, 7], areas, torch.tensor([0.8, 0.9, 0.95], dtype=torch.float64))
    assert len(metric.results()) == 2
    assert evaluated.figures == metric.compute()
    assert 0.1 < evaluated.figures["AP"] < 1, "the best score has the box beside the person"


def test_mpii_figures(tmp_path: Path) -> None:
    """By the authors' file of head boxes; its points count from 1, and a keypoint that is missing does not count."""
    boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0], [20.0, 15.0, 60.0, 60.0]])
    dataset = keypoint_dataset(tmp_path, boxes, 16)
    dataset.annotations = str(tmp_path / "valid.json")
    crops = datasets.KeypointCrops((64, 64), (16, 16))
    network = tiny("v1", 16)
    with pytest.raises(InputError, match=r"gt_valid\.mat cannot be read"):
        evaluate_keypoints(network, dataset, crops, recipe("pckh"), "cpu")
    missing = np.zeros((16, 2))
    missing[3, 1] = 1
    heads = np.array([[[10.0, 12.0], [20.0, 22.0]], [[60.0, 52.0], [60.0, 52.0]]])  # [corner, axis, person]
    targets = dataset.points.transpose(1, 2, 0).astype(float) + 1
    savemat(tmp_path / "gt_valid.mat", {"pos_gt_src": targets, "jnt_missing": missing, "headboxes_src": heads})
    found = evaluate_keypoints(network, dataset, crops, recipe("pckh"), "cpu", batch_size=1)
    metric = PCKh()
    corners = torch.tensor([[10.0, 20.0, 60.0, 60.0], [12.0, 22.0, 52.0, 52.0]])
    counted = torch.ones(2, 16)
    counted[1, 3] = 0
    metric.update(answers(found.samples)[0], torch.from_numpy(dataset.points), counted, corners)
    assert found.figures == pytest.approx(metric.compute())
    assert 0 < found.figures["mean@0.5"] < 1
