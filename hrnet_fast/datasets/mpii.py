"""MPII human pose, from the annotations that the authors converted to JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hrnet_fast.checks import check_number, check_text
from hrnet_fast.datasets.coco_files import MALFORMED
from hrnet_fast.datasets.keypoint_dataset import KeypointDataset, KeypointRow
from hrnet_fast.datasets.reading import check_folder, fail, read_json
from hrnet_fast.errors import DatasetError
from hrnet_fast.keypoints.keypoint_sets import MPII

MPII_UPPER_BODY = tuple(range(7, 16))


def mpii(
    root: str | os.PathLike[str], split: str = "train", *, lowered_by: float = 15.0, skip_broken: bool = False
) -> KeypointDataset:
    """Read ``annot/{split}.json`` and ``images/``, as the authors' ``lib/dataset/mpii.py`` does.

    Points count from 0. A box is the square of side 200 * scale around the centre, which is moved down by
    ``lowered_by * scale`` pixels; :func:`~hrnet_fast.keypoints.fit_box` widens it by 1.25. Rows without joints
    (``test``) have invisible points.

    Args:
        root: folder with ``annot`` and ``images``.
        split: ``"train"``, ``"valid"``, ``"trainval"`` or ``"test"``.
        lowered_by: pixels at scale 1.
        skip_broken: see :class:`~hrnet_fast.datasets.AnnotatedImages`.

    Raises:
        DatasetError: the file or a row is malformed.
    """
    check_text("mpii", split=split)
    check_number("mpii", "lowered_by", lowered_by)
    folder = check_folder("mpii", root)
    source = folder / "annot" / f"{split}.json"
    content = read_json(source)
    if not isinstance(content, list):
        raise fail(source, "", f"{type(content).__name__}", "a list of persons")
    rows: list[KeypointRow | DatasetError] = []
    for number, item in enumerate(content):
        try:
            rows.append(_person(source, folder / "images", f"row {number}", item, lowered_by))
        except DatasetError as error:
            rows.append(error)
    dataset = KeypointDataset(
        MPII.names,
        bones=MPII.bones,
        flip_pairs=MPII.pairs,
        upper_body=MPII_UPPER_BODY,
        annotations=source,
        skip_broken=skip_broken,
    )
    return dataset.fill(rows, str(source))


def _person(source: Path, images: Path, row: str, item: Any, lowered_by: float) -> KeypointRow:
    accepted = "image, center (x, y), scale, and 16 joints (x, y) with joints_vis"
    try:
        centre = np.array(item["center"], dtype=np.float64)
        scale, path = float(item["scale"]), str(images / item["image"])
        points = np.array(item.get("joints", np.zeros((16, 2))), dtype=np.float64) - 1
        visible = np.array(item.get("joints_vis", np.zeros(16)), dtype=np.float64)
    except MALFORMED as error:
        reason = f"a malformed row ({type(error).__name__}: {str(error)[:80]})"
        raise fail(source, row, reason, accepted) from error
    if centre.shape != (2,) or points.shape != (16, 2) or visible.shape != (16,):
        given = f"center {list(centre.shape)}, joints {list(points.shape)} and joints_vis {list(visible.shape)}"
        raise fail(source, row, given, accepted)
    if not (np.isfinite(centre).all() and np.isfinite(points).all() and 0 < scale < np.inf):
        raise fail(source, row, f"scale {scale} or values that are not finite", accepted)
    left, top = (centre - 1 - 100 * scale).tolist()
    box = (left, top + lowered_by * scale, 200 * scale, 200 * scale)
    return KeypointRow(path, row, points, (visible > 0).astype(np.float64), box)
