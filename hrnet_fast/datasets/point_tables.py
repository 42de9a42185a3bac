"""Tables of points: generic CSV, DeepLabCut's layout, and the lists of the authors' face repository."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrnet_fast.checks import check_path, check_text
from hrnet_fast.datasets.keypoint_dataset import KeypointDataset, KeypointRow, pairs_of_names, points_box
from hrnet_fast.datasets.reading import check_folder, fail, read_number, read_rows
from hrnet_fast.errors import DatasetError, InputError, shown
from hrnet_fast.keypoints.keypoint_sets import get_keypoint_set

_BOXES = ("image", "points")


def points_csv(
    table: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    box: str = "image",
    flip_pairs: Sequence[tuple[int, int]] | None = None,
    skip_broken: bool = False,
) -> KeypointDataset:
    """Read a table with a header, a picture's path in the first column, and x and y of each point in turns.

    An empty cell is a missing point, which is invisible. Points are named by headers such as ``nose_x`` and ``nose.y``,
    and by numbers from 0 otherwise.

    Args:
        table: the CSV file.
        images: folder of the pictures; None means the table's.
        box: ``"image"``, the whole picture, or ``"points"``, the square around the visible points.
        flip_pairs: pairs that mirroring swaps; None means by left and right in the names, if they have these.
        skip_broken: see :class:`~hrnet_fast.datasets.AnnotatedImages`.

    Raises:
        DatasetError: the file or a row is malformed.
    """
    source, folder = _source_and_folder("points_csv", table, images, box)
    header, *rows = read_rows(source)
    columns = header[1:]
    if not columns or len(columns) % 2:
        raise fail(source, "row 1", f"{len(columns)} columns after the first", "x and y of one point or more")
    stems = [re.sub(r"[_.\- ]?x$", "", name, flags=re.IGNORECASE) for name in columns[::2]]
    named = all(
        stem and name != stem and re.sub(r"[_.\- ]?y$", "", other, flags=re.IGNORECASE) == stem
        for stem, name, other in zip(stems, columns[::2], columns[1::2], strict=True)
    )
    names = stems if named else [str(i) for i in range(len(stems))]
    found = [_table_row(source, folder, i, row, 1, len(names), box) for i, row in enumerate(rows, 2) if any(row)]
    pairs = flip_pairs if flip_pairs is not None else pairs_of_names(names)
    return KeypointDataset(names, flip_pairs=pairs, skip_broken=skip_broken).fill(found, str(source))


def deeplabcut(
    table: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    box: str = "image",
    flip_pairs: Sequence[tuple[int, int]] | None = None,
    skip_broken: bool = False,
) -> KeypointDataset:
    """Read DeepLabCut's ``CollectedData_<scorer>.csv`` of one animal a picture.

    Its header has the rows ``scorer``, ``bodyparts`` and ``coords``. A path has one column, or three (``labeled-data``,
    folder, file) in newer files. An empty cell is a missing point, which is invisible.

    Args: as in :func:`points_csv`. The pictures' paths begin at `images`; None means the table's folder.

    Raises:
        DatasetError: the file or a row is malformed, or it has several individuals.
    """
    source, folder = _source_and_folder("deeplabcut", table, images, box)
    header: dict[str, list[str]] = {}
    rows = read_rows(source)
    while rows and (rows[0] or [""])[0] in ("scorer", "individuals", "bodyparts", "coords"):
        row = rows.pop(0)
        header[row[0]] = row
    if "individuals" in header:
        raise fail(source, "", "a table of several individuals", "DeepLabCut's layout of one animal a picture")
    axes, parts = header.get("coords", []), header.get("bodyparts", [])
    first = axes.index("x") if "x" in axes else 1
    body = parts[first:]
    if len(parts) != len(axes) or axes[first:] != ["x", "y"] * (len(body) // 2) or body[::2] != body[1::2]:
        given = "a header without matching rows bodyparts and coords"
        raise fail(source, "", given, "the rows scorer, bodyparts and coords, with x and y of each body part")
    names = body[::2]
    if not names or len(set(names)) != len(names):
        raise fail(source, "bodyparts", f"{len(names)} names, {len(set(names))} of them different", "different names")
    found = [
        _table_row(source, folder, i, row, first, len(names), box)
        for i, row in enumerate(rows, len(header) + 1)
        if any(row)
    ]
    pairs = flip_pairs if flip_pairs is not None else pairs_of_names(names)
    return KeypointDataset(names, flip_pairs=pairs, skip_broken=skip_broken).fill(found, str(source))


def face_landmarks(
    table: str | os.PathLike[str], images: str | os.PathLike[str], points: str = "wflw", *, skip_broken: bool = False
) -> KeypointDataset:
    """Read a list of the authors' face repository (``lib/datasets/wflw.py``, ``face300w.py``, ``aflw.py``).

    The columns are the picture, its scale, for AFLW the size of the box, the centre (x, y), and the landmarks. A box is
    the square of side 200 * scale around the centre. Landmarks with y of 0 or less are invisible. COFW's own
    MATLAB files are read by :func:`~hrnet_fast.datasets.cofw`; a list with the columns of WFLW is read here.

    Args:
        table: such as ``face_landmarks_wflw_train.csv``.
        images: folder of the pictures.
        points: ``"wflw"`` (98), ``"300w"`` (68), ``"cofw"`` (29) or ``"aflw"`` (19).
        skip_broken: see :class:`~hrnet_fast.datasets.AnnotatedImages`.

    Raises:
        DatasetError: the file or a row is malformed.
    """
    source, folder = _source_and_folder("face_landmarks", table, images, "image")
    check_text("face_landmarks", points=points)
    known = get_keypoint_set(points)
    before = 5 if points == "aflw" else 4
    found: list[KeypointRow | DatasetError] = []
    for number, row in enumerate(read_rows(source)[1:], 2):
        parsed = _table_row(source, folder, number, row, before, known.channels, "image", 1)
        if isinstance(parsed, KeypointRow):
            try:
                scale, *size, x, y = [read_number(source, parsed.row, cell) for cell in row[1:before]]
            except DatasetError as error:
                parsed = error
            else:
                parsed.box = (x - 100 * scale, y - 100 * scale, 200 * scale, 200 * scale)
                parsed.box_size = size[0] if size else np.nan
                parsed.visible *= parsed.points[:, 1] > 0
        found.append(parsed)
    dataset = KeypointDataset(known.names, flip_pairs=known.pairs, skip_broken=skip_broken)
    return dataset.fill(found, str(source))


def _source_and_folder(
    what: str, table: str | os.PathLike[str], images: str | os.PathLike[str] | None, box: str
) -> tuple[Path, Path]:
    source = check_path(what, table)
    if box not in _BOXES:
        raise InputError(f"{what}: box={shown(box)}; accepted are {', '.join(map(repr, _BOXES))}.")
    return source, source.parent if images is None else check_folder(what, images)


def _table_row(
    source: Path, folder: Path, number: int, row: list[str], before: int, count: int, box: str, path_cells: int = 0
) -> KeypointRow | DatasetError:
    """Return a row with `before` cells before its points, of which the first `path_cells` (0: all) are the path."""
    name = f"row {number}"
    try:
        if len(row) != before + 2 * count:
            raise fail(source, name, f"{len(row)} cells", f"{before + 2 * count}: {before} and x, y of {count} points")
        values = [read_number(source, name, cell, missing=True) for cell in row[before:]]
    except DatasetError as error:
        return error
    points: NDArray[np.float64] = np.array(values, dtype=np.float64).reshape((count, 2))
    visible = np.where(np.isnan(points).any(axis=1), 0.0, 1.0)
    points[visible == 0] = 0
    path = folder.joinpath(*row[: path_cells or before])
    found = KeypointRow(str(path), name, points, visible)
    if box == "points":
        found.box = points_box(points, visible)
    return found
