"""COCO keypoints, and keypoint sets in COCO's format."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrnet_fast.checks import check_bool, check_path, check_text
from hrnet_fast.datasets.coco_files import (
    MALFORMED,
    a_list,
    integer_id,
    is_crowd,
    malformed,
    picture_of,
    pictures_by_id,
    read_coco,
    rows_of,
)
from hrnet_fast.datasets.keypoint_dataset import KeypointDataset, KeypointRow, pairs_of_names
from hrnet_fast.datasets.reading import check_folder, fail, read_json
from hrnet_fast.errors import InputError, shown
from hrnet_fast.keypoints import mirror_order
from hrnet_fast.keypoints.keypoint_sets import COCO

COCO_UPPER_BODY = tuple(range(11))


def coco_keypoints(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    detections: str | os.PathLike[str] | None = None,
    category: str | None = None,
    flip_pairs: Sequence[tuple[int, int]] | None = None,
    upper_body: Sequence[int] = (),
    narrow_boxes: bool = True,
    skip_broken: bool = False,
) -> KeypointDataset:
    """Read keypoints in COCO's format, one sample per annotated or detected box.

    Left out, as in the authors' ``lib/dataset/coco.py``: crowds, other categories, and annotations without a labelled
    keypoint or with ``area`` 0. Boxes are cut at the picture's borders. Detections are taken as they are.

    Args:
        annotations: a file such as ``annotations/person_keypoints_train2017.json``.
        images: the folder in which the pictures' ``file_name`` is.
        detections: a detector's results (``image_id``, ``category_id``, ``bbox``, ``score``). They give the samples;
            their points are invisible.
        category: name of the category; needed where several have keypoints.
        flip_pairs: pairs that mirroring swaps. Default: the category's ``flip_pairs`` if it has them, otherwise from
            left and right in the names.
        upper_body: keypoints of the upper body. Default: COCO's for its 17 names.
        narrow_boxes: boxes are one pixel narrower and lower, as the authors' code computes them.
        skip_broken: see :class:`~hrnet_fast.datasets.AnnotatedImages`.

    Raises:
        DatasetError: a file, category or annotation is malformed, or a box is outside of its picture.
    """
    check_bool("coco_keypoints", narrow_boxes=narrow_boxes)
    if category is not None:
        check_text("coco_keypoints", category=category)
    source, folder = check_path("coco_keypoints", annotations), check_folder("coco_keypoints", images)
    content = read_coco(source)
    chosen = _choose_category(source, content["categories"], category, flip_pairs is None)
    dataset = KeypointDataset(
        chosen.names,
        bones=chosen.bones,
        flip_pairs=chosen.pairs if flip_pairs is None else flip_pairs,
        upper_body=upper_body or (COCO_UPPER_BODY if chosen.names == COCO.names else ()),
        annotations=source,
        category_id=chosen.number,
        skip_broken=skip_broken,
    )
    pictures, errors = pictures_by_id(source, content["images"])
    if detections is None:
        convert = partial(_annotated, source, folder, pictures, chosen, narrow_boxes)
        rows = rows_of(source, content["annotations"], convert)
    else:
        found = check_path("coco_keypoints", detections)
        convert = partial(_detected, found, folder, pictures, chosen)
        rows = rows_of(found, a_list(found, read_json(found)), convert)
        source = found
    return dataset.fill([*errors, *rows], str(source))


class _Category(NamedTuple):
    """A category with keypoints."""

    number: int
    names: tuple[str, ...]
    bones: list[tuple[int, int]]
    pairs: Sequence[tuple[int, int]] | None


def _choose_category(source: Path, categories: list[Any], name: str | None, own_pairs: bool) -> _Category:
    """Return the category, without flip pairs unless the file's own are asked for."""
    usable = [c for c in categories if isinstance(c, dict) and c.get("keypoints") and "id" in c]
    chosen = [c for c in usable if name in (None, c.get("name"))]
    if len(chosen) != 1:
        known = ", ".join(str(c.get("name")) for c in usable) or "none"
        given = f"category={name!r} with {len(chosen)} matches; categories with keypoints are {known}"
        raise fail(source, "", given, "the name of one of them as category=")
    (entry,) = chosen
    place = f"category {shown(entry.get('name'))}"
    number = integer_id(source, place, entry)
    names = tuple(map(str, a_list(source, entry["keypoints"], f"keypoints of {place}")))
    try:
        bones = [(int(a) - 1, int(b) - 1) for a, b in entry.get("skeleton", ())]
        pairs = entry.get("flip_pairs", pairs_of_names(names)) if own_pairs else None
        if pairs is not None:
            mirror_order(pairs, len(names))
    except (*MALFORMED, InputError) as error:
        raise malformed(source, place, error) from error
    return _Category(number, names, bones, pairs)


def _is_of(source: Path, item: Any, category: _Category, name: str) -> bool:
    """Return whether an annotation or detection called `name` is of the category."""
    number = item["category_id"]
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise fail(source, name, f"category_id {shown(number)}", "an integer")
    return number == category.number


def _annotated(
    source: Path, folder: Path, pictures: dict[int, Any], category: _Category, narrow: bool, item: Any, name: str
) -> KeypointRow | None:
    name, count = f"id {item['id']}", len(category.names)  # without an id COCO's evaluation fails
    if not _is_of(source, item, category, name) or is_crowd(source, item, name) or float(item.get("area", 1)) <= 0:
        return None
    flat = np.array(item.get("keypoints", []), dtype=np.float64)
    if flat.size and flat.shape != (3 * count,):
        raise fail(source, name, f"{flat.size} values in keypoints", f"3 for each of {count} keypoints")
    triples = flat.reshape(-1, 3)
    if not np.isfinite(flat).all() or not np.isin(triples[:, 2], (0, 1, 2)).all():
        raise fail(source, name, "keypoints with other values", "finite x and y, and 0, 1 or 2 for the visibility")
    if not (triples[:, 2] > 0).any():
        return None
    picture = picture_of(source, pictures, item, name)
    box = _cut_box(source, name, item["bbox"], picture, int(narrow))
    path = str(folder / picture["file_name"])
    visible = (triples[:, 2] > 0).astype(np.float64)
    return KeypointRow(path, name, triples[:, :2], visible, box, int(item["image_id"]))


def _four_numbers(source: Path, name: str, box: Iterable[Any]) -> tuple[float, ...]:
    sides = tuple(float(side) for side in box)
    if len(sides) != 4 or not np.isfinite(sides).all() or min(sides[2:]) <= 0:
        raise fail(source, name, f"bbox {sides}", "(left, top, width, height) in pixels, of positive area")
    return sides


def _cut_box(
    source: Path, name: str, box: Iterable[Any], picture: dict[str, Any], less: int
) -> tuple[float, float, float, float]:
    """Return a box cut at the picture's borders; `less` is 1 if the last column and row belong to the box."""
    left, top, width, height = _four_numbers(source, name, box)
    whole_width, whole_height = int(picture["width"]), int(picture["height"])
    x, y = max(0.0, left), max(0.0, top)
    if x >= whole_width or y >= whole_height or left + width <= 0 or top + height <= 0:
        given = f"bbox {(left, top, width, height)} outside of its picture of {whole_width} x {whole_height}"
        raise fail(source, name, given, "a box that has a part of its picture")
    right = min(whole_width - less, x + max(0.0, width - less))
    bottom = min(whole_height - less, y + max(0.0, height - less))
    if max(right - x, bottom - y) <= 0:
        raise fail(source, name, f"bbox {(left, top, width, height)} of one pixel", "a box of more than one pixel")
    # fit_box widens the other side to the input's aspect; it asks for a positive one.
    return (x, y, max(right - x, 1e-3), max(bottom - y, 1e-3))


def _detected(
    source: Path, folder: Path, pictures: dict[int, Any], category: _Category, item: Any, name: str
) -> KeypointRow | None:
    name, count = f"image_id {item['image_id']}", len(category.names)
    if not _is_of(source, item, category, name):
        return None
    picture = picture_of(source, pictures, item, name)
    left, top, width, height = _four_numbers(source, name, item["bbox"])
    score = float(item["score"])
    if not np.isfinite(score):
        raise fail(source, name, f"score {score}", "a finite number")
    points, visible = np.zeros((count, 2)), np.zeros(count)
    path = str(folder / picture["file_name"])
    return KeypointRow(path, name, points, visible, (left, top, width, height), int(item["image_id"]), score)
