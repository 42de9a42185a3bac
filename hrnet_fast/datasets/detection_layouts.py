"""Objects in COCO's format, and in Pascal VOC's XML files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from hrnet_fast.checks import check_bool, check_integer, check_path, check_text
from hrnet_fast.datasets.coco_files import (
    entry_name,
    integer_id,
    is_crowd,
    picture_of,
    pictures_by_id,
    read_coco,
    rows_of,
)
from hrnet_fast.datasets.detection_dataset import DetectionDataset, PictureRow, cut_box
from hrnet_fast.datasets.reading import check_folder, fail, read_text
from hrnet_fast.errors import DatasetError, InputError, shown

VOC_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def coco_instances(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    classes: Sequence[str] = (),
    masks: bool = False,
    semantic: str | os.PathLike[str] | None = None,
    filter_empty: bool = False,
    least_side: int = 0,
    skip_broken: bool = False,
) -> DetectionDataset:
    """Read objects in COCO's format, one sample for each picture.

    As in mmdetection's ``CocoDataset``, crowds are ignored regions, and objects are left out whose ``area`` is 0 or
    that are narrower or lower than a pixel.

    Args:
        annotations: a file such as ``annotations/instances_train2017.json``.
        images: the folder in which the pictures' ``file_name`` is.
        classes: names of the categories to read, in the order of the network's outputs; () reads all, by their ids.
        masks: read segmentations as well.
        semantic: a folder with the class of each pixel, PNGs named as the pictures: ``stuffthingmaps/train2017``.
        filter_empty: leave pictures without an object out, as mmdetection's configurations train (``filter_empty_gt``).
        least_side: leave pictures with a side of fewer pixels out (mmdetection's ``min_size``: 32).
        skip_broken: see :class:`~hrnet_fast.datasets.AnnotatedImages`. A picture with a broken annotation is left out.

    Raises:
        DatasetError: a file, category or annotation is malformed, or a box is outside of its picture.
    """
    _check_arguments("coco_instances", classes, masks, filter_empty, least_side)
    source, folder = check_path("coco_instances", annotations), check_folder("coco_instances", images)
    content = read_coco(source)
    names = _category_names(source, content["categories"])
    chosen = _chosen(source, names, classes)
    dataset = DetectionDataset(
        [names[number] for number in chosen],
        chosen,
        annotations=source,
        masks=masks,
        semantic=None if semantic is None else check_folder("coco_instances", semantic),
        skip_broken=skip_broken,
    )
    pictures, errors = pictures_by_id(source, content["images"])
    found: dict[int, list[Any]] = {number: [] for number in pictures}
    pairs = rows_of(
        source, content["annotations"], lambda item, name: (picture_of(source, pictures, item, name)["id"], item)
    )
    for pair in pairs:
        if isinstance(pair, DatasetError):
            errors.append(pair)
        else:
            found[pair[0]].append(pair[1])
    rows = rows_of(
        source,
        pictures.items(),
        lambda one, _: _coco_row(source, folder, one[0], one[1], found[one[0]], names, chosen, masks),
        lambda one, _: f"image {one[0]}",
    )
    return dataset.fill([*errors, *rows], str(source), filter_empty=filter_empty, least_side=least_side)


def _category_names(source: Path, categories: list[Any]) -> dict[int, str]:
    if not categories:
        raise fail(source, "", "no category", "categories with id and name")
    numbers = [integer_id(source, f"category {i} of the list", entry) for i, entry in enumerate(categories)]
    nameless = [number for number, entry in zip(numbers, categories, strict=True) if "name" not in entry]
    if nameless:
        raise fail(source, f"category {nameless[0]}", "no name", "categories with id and name")
    return {number: str(entry["name"]) for number, entry in zip(numbers, categories, strict=True)}


def _chosen(source: Path, names: Mapping[int, str], classes: Sequence[str]) -> list[int]:
    if not classes:
        return sorted(names)
    numbers = {name: number for number, name in names.items()}
    unknown = [name for name in classes if name not in numbers]
    if unknown:
        raise fail(source, "", f"no category {unknown[0]!r}", f"names of its categories: {', '.join(names.values())}")
    return [numbers[name] for name in classes]


def _coco_row(
    source: Path,
    folder: Path,
    image_id: int,
    picture: Mapping[str, Any],
    items: Sequence[Any],
    names: Mapping[int, str],
    chosen: Sequence[int],
    masks: bool,
) -> PictureRow:
    size = (int(picture["height"]), int(picture["width"]))
    found = PictureRow(str(folder / picture["file_name"]), f"image {image_id}", image_id, size)
    for number, item in enumerate(items):
        place = entry_name(item, number)
        if item["category_id"] not in names:
            raise fail(source, place, f"category_id {shown(item['category_id'])}", 'an id of "categories"')
        if item["category_id"] not in chosen:
            continue
        crowd = is_crowd(source, item, place)
        left, top, width, height = (float(side) for side in item["bbox"])
        if not np.isfinite([left, top, width, height]).all():
            raise fail(source, place, f"bbox {(left, top, width, height)}", "(left, top, width, height) in pixels")
        if float(item.get("area", 1)) <= 0 or width < 1 or height < 1:
            continue
        box = cut_box((left, top, left + width, top + height), size, source, place)
        label = chosen.index(item["category_id"])
        if crowd:
            found.ignored.append(box)
            found.ignored_labels.append(label)
            continue
        found.boxes.append(box)
        found.labels.append(label)
        if masks:
            if "segmentation" not in item:
                raise fail(source, place, "no segmentation", "an annotation with a mask, or masks=False")
            found.masks.append(_compact(item["segmentation"]))
    return found


def _compact(segmentation: Any) -> Any:
    """Return a segmentation whose polygons are arrays, which take an eighth of a list's memory."""
    if isinstance(segmentation, dict):
        return segmentation
    return [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]


def voc_boxes(
    root: str | os.PathLike[str],
    split: str = "train",
    *,
    classes: Sequence[str] = (),
    filter_empty: bool = False,
    least_side: int = 0,
    skip_broken: bool = False,
) -> DetectionDataset:
    """Read objects in Pascal VOC's layout: ``JPEGImages/*.jpg``, ``Annotations/*.xml`` and a split's list of names.

    The list is ``ImageSets/Main/{split}.txt``, or ``{split}.txt`` in the folder itself. Boxes are of whole pixels,
    counted from 1 and both ends included, as the VOC2007 devkit's evaluation reads them. So x1 and y1 are one less
    here, and a box with xmax equal to xmin is one pixel wide. mmdetection's ``XMLDataset`` subtracts 1 from xmax and
    ymax too: its boxes are one pixel narrower and lower. Objects marked as difficult are ignored regions. Left out are
    boxes with xmax below xmin or ymax below ymin, and those of a single pixel (both equal), which mmdetection keeps:
    labelling tools write them for a click without a drag, as in BCCD.

    Args:
        root: the folder.
        split: name of the list.
        classes: names of the classes, in the order of the network's outputs; () takes VOC's 20.
        filter_empty, least_side, skip_broken: as in :func:`coco_instances`.

    Raises:
        DatasetError: a list or an XML file is missing or malformed, names another class, or has a box outside of its
            picture.
    """
    check_text("voc_boxes", split=split)
    _check_arguments("voc_boxes", classes, False, filter_empty, least_side)
    folder = check_folder("voc_boxes", root)
    names = tuple(classes) or VOC_NAMES
    usual = folder / "ImageSets" / "Main" / f"{split}.txt"
    source = usual if usual.is_file() else folder / f"{split}.txt"
    rows: list[PictureRow | DatasetError] = []
    listed = [line.split()[0] for line in read_text(source).splitlines() if line.strip()]
    for number, stem in enumerate(listed, 1):
        try:
            rows.append(_voc_row(folder, stem, number, names))
        except DatasetError as error:
            rows.append(error)
    dataset = DetectionDataset(names, range(1, len(names) + 1), skip_broken=skip_broken)
    return dataset.fill(rows, str(source), filter_empty=filter_empty, least_side=least_side)


def _voc_row(folder: Path, stem: str, number: int, names: Sequence[str]) -> PictureRow:
    path = folder / "Annotations" / f"{stem}.xml"
    try:
        tree = ElementTree.fromstring(read_text(path))
        size = (int(_text(tree, "size/height")), int(_text(tree, "size/width")))
    except (ElementTree.ParseError, ValueError) as error:
        raise fail(
            path, "", f"no annotation of VOC ({str(error)[:80]})", "VOC's XML with the picture's size"
        ) from error
    found = PictureRow(str(folder / "JPEGImages" / f"{stem}.jpg"), f"row {number}", number, size)
    for place, element in enumerate(tree.iter("object"), 1):
        name = f"object {place}"
        try:
            label = _text(element, "name")
            xmin, ymin, xmax, ymax = (float(_text(element, f"bndbox/{s}")) for s in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError as error:
            given = f"a malformed object ({str(error)[:80]})"
            raise fail(path, name, given, "name, and bndbox with xmin, ymin, xmax and ymax") from error
        if label not in names:
            raise fail(path, name, f"class {label!r}", f"one of {', '.join(names)}")
        if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
            raise fail(path, name, f"bndbox {(xmin, ymin, xmax, ymax)}", "finite numbers of pixels")
        if xmax < xmin or ymax < ymin or (xmax, ymax) == (xmin, ymin):
            continue
        box = cut_box((xmin - 1, ymin - 1, xmax, ymax), size, path, name)
        difficult = (element.findtext("difficult") or "0").strip() == "1"
        (found.ignored if difficult else found.boxes).append(box)
        (found.ignored_labels if difficult else found.labels).append(names.index(label))
    return found


def _text(element: ElementTree.Element, name: str) -> str:
    found = element.findtext(name)
    if found is None:
        raise ValueError(f"{name} missing")
    return found.strip()


def _check_arguments(what: str, classes: Sequence[str], masks: bool, filter_empty: bool, least_side: int) -> None:
    check_bool(what, masks=masks, filter_empty=filter_empty)
    check_integer(what, "least_side", least_side, least=0)
    unusable = isinstance(classes, str) or not all(isinstance(name, str) and name for name in classes)
    if unusable or len(set(classes)) != len(classes):
        raise InputError(f"{what}: classes={shown(classes)}; accepted are different names.")
