"""Objects in COCO's format and in VOC's XML: what is read, left out, ignored and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_files import save_mask, save_picture

from hrnet_fast import datasets
from hrnet_fast.datasets import object_masks
from hrnet_fast.datasets.picture_cache import PictureCache
from hrnet_fast.errors import DatasetError, InputError, MissingPackageError

CATEGORIES = [{"id": 3, "name": "fly"}, {"id": 1, "name": "bee"}, {"id": 7, "name": "moth"}]
SQUARE = [[4.0, 2.0, 14.0, 2.0, 14.0, 12.0, 4.0, 12.0]]


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    made = {"id": number, "image_id": 1, "category_id": 1, "bbox": [4.0, 2.0, 10.0, 10.0], "area": 100.0, "iscrowd": 0}
    return made | {"segmentation": SQUARE} | changes


def save_objects(folder: Path, annotations: list[Any], content: dict[str, Any] | None = None) -> Path:
    """Save pictures 1 and 2 of 32 x 24 and the annotations of both; return the file of annotations."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 24, "width": 32} for i in (1, 2)]
    for image in images:
        save_picture(folder / str(image["file_name"]), seed=int(str(image["id"])))
    whole = {"images": images, "categories": CATEGORIES, "annotations": annotations} | (content or {})
    (folder / "objects.json").write_text(json.dumps(whole))
    return folder / "objects.json"


def rle(mask: np.ndarray) -> dict[str, Any]:
    """Return plain counts of a mask, columns first."""
    flat = [0, *mask.T.flatten().tolist()]
    changes = [i for i in range(1, len(flat)) if flat[i] != flat[i - 1]]
    return {"size": list(mask.shape), "counts": np.diff([1, *changes, len(flat)]).tolist()}


def test_objects_crowds_and_what_is_left_out(tmp_path: Path) -> None:
    file = save_objects(
        tmp_path,
        [
            annotation(1),
            annotation(2, category_id=3, bbox=[20.0, 10.0, 30.0, 9.0]),  # reaches beyond the picture
            annotation(3, iscrowd=1, bbox=[0.0, 0.0, 8.0, 8.0], segmentation={"size": [24, 32], "counts": [768]}),
            annotation(4, area=0.0),
            annotation(5, bbox=[3.0, 3.0, 0.5, 6.0]),
            annotation(6, category_id=7),
        ],
    )
    found = datasets.coco_instances(file, tmp_path, classes=("fly", "bee"))
    assert (found.names, found.categories) == (("fly", "bee"), (3, 1))
    first, empty = found[0], found[1]
    assert isinstance(first, datasets.DetectionSample)
    assert first.boxes.tolist() == [[4, 2, 14, 12], [20, 10, 32, 19]]
    assert first.labels.tolist() == [1, 0]
    assert first.ignored.tolist() == [[0, 0, 8, 8]]
    assert (first.image_id, first.row, first.masks) == (1, "image 1", None)
    assert (empty.boxes.shape, empty.labels.dtype) == ((0, 4), torch.int64)
    assert [len(datasets.coco_instances(file, tmp_path, filter_empty=on)) for on in (False, True)] == [2, 1]
    assert datasets.coco_instances(file, tmp_path).categories == (1, 3, 7)
    with pytest.raises(DatasetError, match="no picture to use"):
        datasets.coco_instances(file, tmp_path, least_side=25)
    truth = found.subset([0]).ground_truth()
    assert [one["id"] for one in truth["images"]] == [1]
    assert [one["id"] for one in truth["annotations"]] == [1, 2, 3, 4, 5]
    assert {one["id"] for one in truth["categories"]} == {1, 3}


def test_masks_are_polygons_or_run_lengths(tmp_path: Path) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[5:9, 3:20] = 1
    beyond = [[20.0, 10.0, 60.0, 10.0, 60.0, 40.0, 20.0, 40.0]]
    packed = object_masks.mask_module().encode(np.asfortranarray(mask))
    text = {"size": [24, 32], "counts": packed["counts"].decode()}
    kinds = (SQUARE, beyond, rle(mask), text)
    annotations = [annotation(i, segmentation=kind) for i, kind in enumerate(kinds, 1)]
    sample = datasets.coco_instances(save_objects(tmp_path, annotations), tmp_path, masks=True)[0]
    assert isinstance(sample, datasets.DetectionSample)
    expected = torch.zeros(4, 24, 32, dtype=torch.uint8)
    expected[0, 2:12, 4:14], expected[1, 10:, 20:] = 1, 1
    expected[2:] = torch.from_numpy(mask)
    assert torch.equal(sample.masks, expected)


def test_a_semantic_map_belongs_to_its_picture(tmp_path: Path) -> None:
    file = save_objects(tmp_path, [annotation(1), annotation(2, image_id=2)])
    save_mask(tmp_path / "maps" / "1.png", [0, 5, 255])
    save_mask(tmp_path / "maps" / "2.png", [0], height=23)
    found = datasets.coco_instances(file, tmp_path, semantic=tmp_path / "maps")
    assert found[0].semantic[0, :3].tolist() == [0, 5, 255]
    found.cache = PictureCache(tmp_path / "cache", 1 << 20)
    for _ in range(2):
        assert found[0].semantic[0, :3].tolist() == [0, 5, 255]
    assert "keeps 2 decoded" in found.cache.explain()
    with pytest.raises(DatasetError, match="a map of 32 x 23 for a picture of 32 x 24"):
        found[1]


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown category": ({"category_id": 9}, 'id 1.*category_id 9; accepted is an id of "categories"'),
    "a box outside": (
        {"bbox": [40.0, 2.0, 5.0, 5.0]},
        r"a box from \(40.0, 2.0\) .* outside of its picture of 32 x 24",
    ),
    "a box of NaN": ({"bbox": [float("nan"), 2.0, 5.0, 5.0]}, "bbox"),
    "a box of three": ({"bbox": [1.0, 2.0, 5.0]}, "malformed annotation"),
    "an unknown picture": ({"image_id": 9}, "image_id 9"),
    "no picture": ({"image_id": None, "bbox": None}, "image_id None"),
    "no mask": ({"segmentation": 5}, "malformed annotation"),
    "a picture in a list": ({"image_id": [1]}, "malformed annotation"),
    "a category in a list": ({"category_id": [1]}, "malformed annotation"),
    "a category of text": ({"category_id": "x"}, "category_id 'x'"),
    "a crowd of null": ({"iscrowd": None}, "iscrowd None; accepted is 0 or 1"),
}


def test_annotations_that_are_none(tmp_path: Path) -> None:
    """No mapping, and no mask where masks are read."""
    bare = {name: value for name, value in annotation(2).items() if name != "segmentation"}
    for item, message in ((5, "entry 0.*malformed"), (bare, "id 2.*no segmentation")):
        with pytest.raises(DatasetError, match=message):
            datasets.coco_instances(save_objects(tmp_path, [item]), tmp_path, masks=True)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_annotation_names_its_file(case: str, tmp_path: Path) -> None:
    changes, message = BROKEN[case]
    file = save_objects(tmp_path, [annotation(1, **changes), annotation(2, image_id=2)])
    with pytest.raises(DatasetError, match=message) as caught:
        datasets.coco_instances(file, tmp_path, masks=True)
    assert caught.value.path == str(file)
    found = datasets.coco_instances(file, tmp_path, masks=True, skip_broken=True)
    assert len(found.skipped) == 1
    assert found.picture(len(found) - 1).endswith("2.png")


@pytest.mark.parametrize("number", ["0001", 0.5, None, [1]])
def test_ids_that_are_no_integers(number: Any, tmp_path: Path) -> None:
    """Results and COCO's evaluation have integers; a broken picture is skipped, and is not in the truth either."""
    images = [{"id": i, "file_name": "2.png", "height": 24, "width": 32} for i in (number, 2)]
    annotations = [annotation(1, image_id=number), annotation(2, image_id=2)]
    file = save_objects(tmp_path, annotations, {"images": [*images, 5, {}]})
    with pytest.raises(DatasetError, match=r"objects.json \(image 0 of the list\): id .*; accepted is an integer id"):
        datasets.coco_instances(file, tmp_path)
    found = datasets.coco_instances(file, tmp_path, skip_broken=True)
    truth = found.ground_truth()
    assert (len(found), len(found.skipped)) == (1, 4)  # three pictures, and an annotation of none
    assert [[one["id"] for one in truth[name]] for name in ("images", "annotations")] == [[2], [2]]
    file = save_objects(tmp_path, [], {"categories": [{"id": number, "name": "bee"}]})
    with pytest.raises(DatasetError, match=r"category 0 of the list\): id .*; accepted is an integer id"):
        datasets.coco_instances(file, tmp_path)


READ_LATE: dict[str, tuple[dict[str, Any], str]] = {
    "a mask of another size": ({"segmentation": {"size": [20, 32], "counts": [640]}}, r"a mask of the size \(20, 32\)"),
    "a polygon of a point": ({"segmentation": [[1.0]]}, "a mask that cannot be decoded"),
    "no counts": ({"segmentation": {"size": [24, 32]}}, "a mask that cannot be decoded"),
    "counts of too few pixels": ({"segmentation": {"size": [24, 32], "counts": [8, 8]}}, "its counts are 16 pixels"),
    "a negative count": ({"segmentation": {"size": [24, 32], "counts": [-1, 769]}}, "a negative count"),
    "counts that are a number": ({"segmentation": {"size": [24, 32], "counts": 5}}, "counts are int, neither"),
    "a size of null": ({"segmentation": {"size": None, "counts": [768]}}, "a mask that cannot be decoded"),
}


@pytest.mark.parametrize("case", READ_LATE)
def test_a_broken_mask_raises_when_it_is_read(case: str, tmp_path: Path) -> None:
    changes, message = READ_LATE[case]
    found = datasets.coco_instances(save_objects(tmp_path, [annotation(1, **changes)]), tmp_path, masks=True)
    with pytest.raises(DatasetError, match=message):
        found[0]
    found.skip_broken = True
    assert isinstance(found[0], datasets.SkippedSample)


def test_a_picture_of_another_size(tmp_path: Path) -> None:
    file = save_objects(tmp_path, [annotation(1)])
    save_picture(tmp_path / "1.png", height=30)
    found = datasets.coco_instances(file, tmp_path, skip_broken=True)
    assert isinstance(found[0], datasets.SkippedSample)
    assert "a picture of 32 x 30, while its annotations are of 32 x 24" in found.skipped[0].reason


def test_arguments_and_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_objects(tmp_path, [annotation(1)])
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (DatasetError, "no category 'wasp'", lambda: datasets.coco_instances(file, tmp_path, classes=("wasp",))),
        (InputError, "different names", lambda: datasets.coco_instances(file, tmp_path, classes=("bee", "bee"))),
        (InputError, "different names", lambda: datasets.coco_instances(file, tmp_path, classes="bee")),
        (InputError, "least_side", lambda: datasets.coco_instances(file, tmp_path, least_side=-1)),
    ]
    for content, message in (
        ({"categories": []}, "no category"),
        ({"categories": [5]}, "5 without an id"),
        ({"categories": [{"id": 1}]}, "no name"),
        ({"annotations": {}}, "in place of annotations"),
        ({"images": [{"id": 1}]}, "image 1"),
    ):
        (tmp_path / str(message)).mkdir()
        other = save_objects(tmp_path / str(message), [annotation(1)], content)
        cases.append((DatasetError, message, lambda other=other: datasets.coco_instances(other, tmp_path)))
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    monkeypatch.setattr(object_masks, "_MODULES", ("no_such_package",))
    with pytest.raises(MissingPackageError, match=r"hrnet-fast\[coco\]"):
        datasets.coco_instances(file, tmp_path, masks=True)[0]


OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{x1}</xmin><ymin>3</ymin><xmax>{x2}</xmax><ymax>13</ymax></bndbox></object>"""


def save_voc(folder: Path, *objects: str, split: str = "train.txt") -> Path:
    save_picture(folder / "JPEGImages" / "a.jpg")
    (folder / "Annotations").mkdir()
    size = "<size><width>32</width><height>24</height><depth>3</depth></size>"
    (folder / "Annotations" / "a.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
    (folder / split).parent.mkdir(parents=True, exist_ok=True)
    (folder / split).write_text("a  1\r\n\n")
    return folder


def voc_object(name: str = "bee", x1: Any = 5, x2: Any = 14, difficult: int = 0) -> str:
    return OBJECT.format(name=name, x1=x1, x2=x2, difficult=difficult)


@pytest.mark.parametrize("split", ["train.txt", "ImageSets/Main/train.txt"])
def test_voc(split: str, tmp_path: Path) -> None:
    """Pixels are counted from 1, both ends of a box included."""
    left_out = (voc_object(x1=9, x2=8), voc_object(x1=9, x2=9).replace("<ymax>13<", "<ymax>3<"))
    kept = (voc_object(), voc_object("fly", 30, 40), voc_object(difficult=1), voc_object(x1=9, x2=9))
    objects = (*kept, *left_out)
    found = datasets.voc_boxes(save_voc(tmp_path, *objects, split=split), classes=("fly", "bee"))
    sample = found[0]
    assert isinstance(sample, datasets.DetectionSample)
    assert sample.boxes.tolist() == [[4, 2, 14, 13], [29, 2, 32, 13], [8, 2, 9, 13]]
    assert (sample.labels.tolist(), sample.ignored.tolist()) == ([1, 0, 1], [[4, 2, 14, 13]])
    truth = found.ground_truth()
    assert [(one["category_id"], one["bbox"], one["area"], one["iscrowd"]) for one in truth["annotations"]] == [
        (2, [4, 2, 10, 11], 110, 0), (1, [29, 2, 3, 11], 33, 0), (2, [8, 2, 1, 11], 11, 0),
        (2, [4, 2, 10, 11], 110, 1),
    ]  # fmt: skip
    assert truth["images"] == [{"id": 1}]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (voc_object("wasp"), r"a\.xml \(object 1\): class 'wasp'; accepted is one of bee"),
        (voc_object(x1=50, x2=60), "outside of its picture"),
        (voc_object(x1="left"), "a malformed object"),
        (voc_object(x1="nan"), "bndbox .*; accepted is finite"),
        ("<object><name>bee</name></object>", "bndbox/xmin missing"),
        ("<object>", "no annotation of VOC"),
    ],
)
def test_broken_voc_files_are_named(made: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        datasets.voc_boxes(save_voc(tmp_path, made), classes=("bee",))
    with pytest.raises(DatasetError, match="no picture to use, 1 were skipped"):
        datasets.voc_boxes(tmp_path, classes=("bee",), skip_broken=True)
