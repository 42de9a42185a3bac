"""Readers of keypoints and landmarks: what a sample holds in each layout, and what a broken file says."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from made_files import MOUSE, coco_annotation, pattern, save_coco, save_picture

import hrnet_fast as hf
from hrnet_fast import datasets
from hrnet_fast.datasets.keypoint_dataset import pairs_of_names
from hrnet_fast.datasets.picture_cache import PictureCache
from hrnet_fast.errors import MissingPackageError


def test_coco(tmp_path: Path) -> None:
    left_out = [
        coco_annotation(2, iscrowd=1),
        coco_annotation(3, category_id=7),
        coco_annotation(4, keypoints=[0] * 9),
        coco_annotation(5, area=0),
    ]
    dataset = datasets.coco_keypoints(save_coco(tmp_path, [coco_annotation(1), *left_out]), tmp_path)
    assert len(dataset) == 1
    assert dataset.names == ("head", "left_wing", "right_wing")
    assert (dataset.flip_pairs, dataset.bones, dataset.upper_body) == (((1, 2),), ((0, 1), (0, 2)), ())
    sample = dataset[0]
    assert torch.equal(sample.image, torch.from_numpy(pattern(24, 32)))
    assert sample.points.tolist() == [[5, 6], [9, 7], [0, 0]]
    assert sample.visible.tolist() == [1, 1, 0]
    assert sample.box.tolist() == [4, 2, 9, 11], "one pixel narrower, as in the authors' code"
    assert (sample.row, sample.image_id, sample.score) == ("id 1", 1, 1)
    annotation = dataset.annotation(-1)
    assert annotation.image is None
    assert annotation.path == str(tmp_path / "one.png")


@pytest.mark.parametrize(
    ("box", "narrow", "expected"),
    [([-3.0, -2, 20, 10], True, [0, 0, 19, 9]), ([20.0, 10, 50, 50], True, [20, 10, 11, 13]),
     ([20.0, 10, 50, 50], False, [20, 10, 12, 14])],
)  # fmt: skip
def test_coco_boxes_are_cut_at_the_border(
    tmp_path: Path, box: list[float], narrow: bool, expected: list[float]
) -> None:
    source = save_coco(tmp_path, [coco_annotation(1, bbox=box)])
    assert datasets.coco_keypoints(source, tmp_path, narrow_boxes=narrow)[0].box.tolist() == expected


def test_coco_detections(tmp_path: Path) -> None:
    source = save_coco(tmp_path, [coco_annotation(1)])
    found = [{"image_id": 1, "category_id": k, "bbox": [1, 2, 3, 4], "score": 0.25} for k in (1, 2)]
    (tmp_path / "found.json").write_text(json.dumps(found))
    dataset = datasets.coco_keypoints(source, tmp_path, detections=tmp_path / "found.json")
    assert len(dataset) == 1
    assert dataset[0].box.tolist() == [1, 2, 3, 4]
    assert (dataset[0].score, dataset[0].visible.sum()) == (0.25, 0)


def test_coco_names_have_coco_upper_body(tmp_path: Path) -> None:
    names = [*hf.keypoints.KEYPOINT_SETS["coco"].names]
    source = save_coco(tmp_path, [coco_annotation(1, keypoints=[1, 2, 2] * 17)], keypoints=names, skeleton=[])
    dataset = datasets.coco_keypoints(source, tmp_path)
    assert dataset.flip_pairs == hf.keypoints.KEYPOINT_SETS["coco"].pairs
    assert dataset.upper_body == tuple(range(11))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bbox": [40, 2, 9, 9]}, r"\(id 8\): bbox .* outside of its picture of 32 x 24"),
        ({"bbox": [4, 2, 0, 9]}, r"\(id 8\): bbox .*; accepted is .* of positive area"),
        ({"bbox": None}, r"\(id 8\): a malformed annotation"),
        ({"keypoints": [1, 2]}, r"\(id 8\): 2 values in keypoints; accepted is 3 for each of 3 keypoints"),
        ({"keypoints": [1, 2, 5] * 3}, r"\(id 8\): keypoints with other values"),
        ({"keypoints": ["x", 2, 2] * 3}, r"\(id 8\): a malformed annotation"),
        ({"image_id": 99}, r"\(id 8\): image_id 99; accepted is an id"),
        ({"image_id": [1]}, r"\(id 8\): a malformed annotation"),
        ({"category_id": "1"}, r"\(id 8\): category_id '1'; accepted is an integer"),
        ({"iscrowd": "0"}, r"\(id 8\): iscrowd '0'; accepted is 0 or 1"),
        ({"bbox": [4, 2, float("nan"), 9]}, r"\(id 8\): bbox .*nan"),
        ({"bbox": [4, 2, 10**400, 9]}, r"\(id 8\): a malformed annotation \(OverflowError"),
    ],
)
def test_malformed_annotations_name_file_and_id(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    source = save_coco(tmp_path, [coco_annotation(1), coco_annotation(8, **changes)])
    with pytest.raises(hf.DatasetError, match=told) as caught:
        datasets.coco_keypoints(source, tmp_path)
    assert (caught.value.path, caught.value.row) == (str(source), "id 8")
    dataset = datasets.coco_keypoints(source, tmp_path, skip_broken=True)
    assert len(dataset) == 1
    assert [(s.row, s.reason) for s in dataset.skipped] == [("id 8", str(caught.value))]


def test_pairs_that_are_given_replace_those_of_the_file(tmp_path: Path) -> None:
    source = save_coco(tmp_path, [coco_annotation(1)])
    content = json.loads(source.read_text())
    content["categories"][0]["flip_pairs"] = [[0, 9]]
    source.write_text(json.dumps(content))
    dataset = datasets.coco_keypoints(source, tmp_path, flip_pairs=[(1, 2)])
    assert (len(dataset), dataset.flip_pairs) == (1, ((1, 2),))


MALFORMED: dict[str, tuple[Any, str]] = {
    "a list": ([], r"annotations.json: no COCO annotations"),
    "annotations in a mapping": ({"annotations": {}}, r"annotations.json: dict in place of annotations"),
    "an annotation without fields": ({"annotations": [{}]}, r"annotations.json \(entry 0\): a malformed annotation"),
    "an annotation that is none": ({"annotations": [3]}, r"annotations.json \(entry 0\): a malformed annotation"),
    "a picture's id as text": ({"images": [{"id": "1"}]}, r"annotations.json \(image 0 of the list\): id '1'"),
    "a picture without a size": ({"images": [{"id": 1, "file_name": "a"}]}, r"\(id 1\): a malformed .*width"),
    "a category's id as text": ({"id": "1"}, r"annotations.json \(category 'fly'\): id '1'"),
    "names in one text": ({"keypoints": "nose"}, r"annotations.json: str in place of keypoints of category 'fly'"),
    "bones of one point": ({"skeleton": [1]}, r"annotations.json \(category 'fly'\): a malformed annotation"),
    "pairs of other points": ({"flip_pairs": [[0, 9]]}, r"annotations.json \(category 'fly'\): a malformed"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_content_names_its_file(case: str, tmp_path: Path) -> None:
    change, told = MALFORMED[case]
    source = save_coco(tmp_path, [coco_annotation(1)])
    content = json.loads(source.read_text())
    if isinstance(change, dict):
        change = content | change if set(change) <= set(content) else {**content, "categories": [
            content["categories"][0] | change
        ]}  # fmt: skip
    source.write_text(json.dumps(change))
    with pytest.raises(hf.DatasetError, match=told) as caught:
        datasets.coco_keypoints(source, tmp_path)
    assert caught.value.path == str(source)


def test_malformed_detections_and_tables_name_their_file(tmp_path: Path) -> None:
    source, path = save_coco(tmp_path, [coco_annotation(1)]), tmp_path / "made"
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": float("nan")}
    persons = tmp_path / "annot" / "train.json"
    persons.parent.mkdir()
    for call, text, told in (
        (lambda: datasets.coco_keypoints(source, tmp_path, detections=path), "{}", "made: dict in place of"),
        (lambda: datasets.coco_keypoints(source, tmp_path, detections=path), json.dumps([box]), "score nan"),
        (lambda: datasets.coco_keypoints(source, tmp_path, detections=path), "[{}]", r"made \(entry 0\)"),
        (lambda: datasets.coco_keypoints(path, tmp_path), "[" * 100_000, "made: no JSON"),
        (lambda: datasets.coco_keypoints(path, tmp_path), "[" + "9" * 5000 + "]", "made: no JSON"),
        (lambda: datasets.mpii(tmp_path), "[[1]]", r"train.json \(row 0\): a malformed row"),
        (lambda: datasets.mpii(tmp_path), '{"image": 1}', "train.json: dict"),
        (lambda: datasets.points_csv(path), "a," + "x" * 200_000, "made: no table"),
        (lambda: datasets.deeplabcut(path), "\nscorer,a,a\n", r"made \(bodyparts\): 0 names"),
    ):
        path.write_text(text)
        persons.write_text(text)
        with pytest.raises(hf.DatasetError, match=told):
            call()


def test_unusable_coco_files(tmp_path: Path) -> None:
    source = save_coco(tmp_path, [])
    for call, told in (
        (lambda: datasets.coco_keypoints(source, tmp_path), "no sample"),
        (lambda: datasets.coco_keypoints(source, tmp_path, category="cat"), "'cat' with 0 matches; .* are fly"),
        (lambda: datasets.coco_keypoints(tmp_path / "no.json", tmp_path), "no such file"),
        (lambda: datasets.coco_keypoints(tmp_path / "one.png", tmp_path), "cannot be read"),
        (lambda: datasets.coco_keypoints(source, tmp_path / "none"), "no such folder"),
    ):
        with pytest.raises(hf.DatasetError, match=told):
            call()
    source.write_text('{"images": [')
    with pytest.raises(hf.DatasetError, match=r"line 1\): no JSON"):
        datasets.coco_keypoints(source, tmp_path)


def test_mpii(tmp_path: Path) -> None:
    save_picture(tmp_path / "images" / "a.png", 240, 320)
    row = {
        "image": "a.png",
        "center": [101.0, 91.0],
        "scale": 0.5,
        "joints": [[11.0, 21.0]] * 16,
        "joints_vis": [1] * 16,
    }
    row["joints_vis"][3] = 0
    (tmp_path / "annot").mkdir()
    source = tmp_path / "annot" / "train.json"
    source.write_text(json.dumps([row]))
    dataset = datasets.mpii(tmp_path)
    sample = dataset[0]
    # mpii.py: the centre is (101, 91 + 15 * 0.5) - 1, the side 200 * 0.5, before both are widened by 1.25.
    assert sample.box.tolist() == [50, 47.5, 100, 100]
    assert sample.points[0].tolist() == [10, 20]
    assert sample.points[3].tolist() == [0, 0]
    assert sample.visible.sum() == 15
    assert dataset.upper_body == tuple(range(7, 16))
    source.write_text(json.dumps([row, row | {"joints": [[1, 2]]}, {"image": "b.png"}]))
    with pytest.raises(hf.DatasetError, match=r"train.json \(row 1\): .* joints \[1, 2\]"):
        datasets.mpii(tmp_path)
    assert [s.row for s in datasets.mpii(tmp_path, skip_broken=True).skipped] == ["row 1", "row 2"]


def test_points_of_a_table(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    table = tmp_path / "points.csv"
    table.write_text("image,left_ear_x,left_ear_y,right_ear_x,right_ear_y\na.png,3.5,4,,\na.png,1,2,9,7\n\n")
    dataset = datasets.points_csv(table)
    assert (dataset.names, dataset.flip_pairs) == (("left_ear", "right_ear"), ((0, 1),))
    assert dataset[0].points.tolist() == [[3.5, 4], [0, 0]]
    assert dataset[0].visible.tolist() == [1, 0]
    assert dataset[0].box.tolist() == [0, 0, 32, 24], "the whole picture"
    assert datasets.points_csv(table, box="points")[1].box.tolist() == [1, 0.5, 8, 8], "a square around the points"
    table.write_text("image,0,1,2,3\na.png,3,4,5,6\n")
    assert datasets.points_csv(table).names == ("0", "1"), "columns of numbers"
    table.write_text("image,0,1\na.png,3,4\na.png,3\na.png,3,z\n")
    with pytest.raises(hf.DatasetError, match=r"points.csv \(row 3\): 2 cells; accepted is 3"):
        datasets.points_csv(table)
    skipping = datasets.points_csv(table, skip_broken=True)
    assert len(skipping) == 1
    assert "'z' in place of a number" in skipping.skipped[1].reason
    table.write_text("image,0,1,2\na.png,3,4,5\n")
    with pytest.raises(hf.DatasetError, match="3 columns after the first"):
        datasets.points_csv(table)
    with pytest.raises(hf.InputError, match="box='face'; accepted are 'image', 'points'"):
        datasets.points_csv(table, box="face")


def test_deeplabcut_frames() -> None:
    """Frames of a mouse in two mirrors; two of 17 keypoints are missing in the first."""
    dataset = datasets.deeplabcut(MOUSE / "CollectedData.csv")
    assert len(dataset) == 3
    sample = dataset[0]
    assert (tuple(sample.image.shape), sample.image.dtype) == ((406, 396, 3), torch.uint8)
    assert dataset.names[:2] == ("paw1LH_top", "paw2LF_top")
    assert dataset.visible.sum(1).tolist() == [15, 16, 17]
    assert sample.points[0].tolist() == [77.25, 36.25]
    assert sample.points[4].tolist() == [0, 0]
    assert dataset.flip_pairs is None


def test_deeplabcut_layouts(tmp_path: Path) -> None:
    save_picture(tmp_path / "labeled-data" / "v" / "a.png")
    table = tmp_path / "CollectedData_me.csv"
    rows = ["scorer,,,me,me", "bodyparts,,,nose,nose", "coords,,,x,y", "labeled-data,v,a.png,5,6"]
    table.write_text("\n".join(rows))
    assert datasets.deeplabcut(table)[0].points.tolist() == [[5, 6]], "a path of three columns"
    table.write_text("\n".join([rows[0], "individuals,,,a,a", *rows[1:]]))
    with pytest.raises(hf.DatasetError, match="several individuals"):
        datasets.deeplabcut(table)
    table.write_text("\n".join([rows[0], rows[2]]))
    with pytest.raises(hf.DatasetError, match="bodyparts and coords"):
        datasets.deeplabcut(table)


@pytest.mark.parametrize(("points", "count"), [("wflw", 98), ("300w", 68), ("cofw", 29), ("aflw", 19)])
def test_lists_of_faces(tmp_path: Path, points: str, count: int) -> None:
    save_picture(tmp_path / "a.png", 100, 120)
    size = ["55"] if points == "aflw" else []
    numbers = [str(20 + i) for i in range(2 * count)]
    numbers[3] = "-1"
    table = tmp_path / "faces.csv"
    table.write_text("\n".join(["header", ",".join(["a.png", "0.3", *size, "60", "50", *numbers])]))
    dataset = datasets.face_landmarks(table, tmp_path, points)
    sample = dataset[0]
    assert sample.box.tolist() == [30, 20, 60, 60]
    assert sample.points[0].tolist() == [20, 21]
    assert sample.visible.tolist() == [1, 0] + [1] * (count - 2), "y of 0 or less is invisible"
    assert (sample.box_size == 55) == (points == "aflw")
    assert dataset.flip_pairs == hf.keypoints.KEYPOINT_SETS[points].pairs
    table.write_text("header\na.png,0.3,60,50,1,2\n")
    with pytest.raises(hf.DatasetError, match=r"faces.csv \(row 2\): 6 cells"):
        datasets.face_landmarks(table, tmp_path, points)


def save_cofw(path: Path, part: str = "Tr", width: int = 87) -> np.ndarray:
    """Save two pictures, a grey one and one in colours, as MATLAB 7.3 has them; return their values [2, width]."""
    values = np.tile(np.arange(width, dtype=np.float64), (2, 1)) / 2 + [[3], [4]]
    values[0, 30] = -1  # y of the second landmark
    with h5py.File(path, "w") as file:
        cells = file.create_dataset(f"Is{part}", (1, 2), dtype=h5py.ref_dtype)
        for i, pixels in enumerate((pattern(60, 50)[..., 0], pattern(60, 50))):
            cells[0, i] = file.create_dataset(f"#refs#/{i}", data=pixels.T).ref
        file[f"phis{part}"] = values.T
    return values


@pytest.mark.parametrize("part", ["Tr", "T"])
def test_cofw(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = save_cofw(tmp_path / "one.mat", part)
    (tmp_path / "ONE.MAT").write_bytes((tmp_path / "one.mat").read_bytes())
    dataset = datasets.cofw(tmp_path / "ONE.MAT")
    dataset.cache = PictureCache(tmp_path / "cache", 2**20)
    samples = [dataset[0], dataset[1]]
    assert torch.equal(samples[0].image, torch.from_numpy(pattern(60, 50)[..., :1]).expand(-1, -1, 3))
    assert np.array_equal(samples[1].image.numpy(), pattern(60, 50))
    assert samples[1].points.tolist() == values[1, :58].reshape(2, 29).T.tolist()
    assert samples[0].visible.tolist() == [1, 0] + [1] * 27
    # From the authors' cofw.py: all landmarks, to whole pixels outwards; the square around their middle.
    points = values[0, :58].reshape(2, 29)
    first, last = np.floor(points.min(1)), np.ceil(points.max(1))
    side = (last - first).max()
    assert samples[0].box.tolist() == [*((first + last - side) / 2), side, side]
    assert "keeps 2 decoded pictures" in dataset.cache.explain()
    dataset.cache = None
    assert dataset.picture(0) != dataset.picture(1), "so that every n-th picture can be held out"
    assert pickle.loads(pickle.dumps(dataset))[1].image is not None
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingPackageError, match=r"'hrnet-fast\[cofw\]'"):
        datasets.cofw(tmp_path / "one.mat")


def test_malformed_files_of_cofw(tmp_path: Path) -> None:
    path = tmp_path / "one.mat"
    with pytest.raises(hf.DatasetError, match=r"one.mat: no such file"):
        datasets.cofw(path)
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(hf.DatasetError, match=r"one.mat: cannot be read .*MATLAB 7.3"):
        datasets.cofw(path)
    save_cofw(path, width=57)
    with pytest.raises(hf.DatasetError, match=r"2 pictures and phisTr \[2, 57\]"):
        datasets.cofw(path)
    with h5py.File(path, "w") as file:
        file["phisTr"] = 1
    with pytest.raises(hf.DatasetError, match="the arrays phisTr"):
        datasets.cofw(path)
    values = save_cofw(path)
    with h5py.File(path, "r+") as file:
        values[0, 3] = np.nan
        file["phisTr"][...] = values.T
        file["#refs#/1"][...] = 0
        del file["#refs#/1"]
    dataset = datasets.cofw(path, skip_broken=True)
    assert [one.row for one in dataset.skipped] == ["row 1"]
    with pytest.raises(hf.DatasetError, match=r"one.mat#IsTr\[1\]: cannot be decoded"):
        dataset.read(0)


def test_pictures_are_read_when_asked_for(tmp_path: Path) -> None:
    """A broken or missing picture, or a box that is outside of it, raises at its sample alone."""
    save_picture(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    header = ",".join(["h"] * 200)
    points = ",".join(["5"] * 196)
    rows = ["a.png,0.1,10,10", "broken.png,0.1,10,10", "none.png,0.1,10,10", "a.png,0.1,90,10"]
    table = tmp_path / "faces.csv"
    table.write_text("\n".join([header, *(f"{row},{points}" for row in rows)]))
    dataset = datasets.face_landmarks(table, tmp_path)
    assert dataset[0].image is not None
    for index, told in (
        (1, "broken.png: cannot be decoded"),
        (2, "no such picture"),
        (3, r"\(row 5\): the box .* outside"),
    ):
        with pytest.raises(hf.DatasetError, match=told):
            dataset[index]
    with pytest.raises(IndexError):
        dataset[4]
    skipping = datasets.face_landmarks(table, tmp_path, skip_broken=True)
    for _ in range(2):
        found = [skipping[i] for i in range(4)]
    assert [isinstance(s, datasets.SkippedSample) for s in found] == [False, True, True, True]
    assert skipping.skipped == tuple(found[1:]), "each once, however often it was asked for"


def test_sides_in_names() -> None:
    assert pairs_of_names(["nose", "eye_L", "eye_R", "L-paw", "R-paw", "Left ear", "right ear"]) == (
        (1, 2), (3, 4), (5, 6),
    )  # fmt: skip
    assert pairs_of_names(["top", "all", "ball", "rib"]) is None
