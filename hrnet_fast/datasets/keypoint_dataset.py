"""Pictures with keypoints, whatever list they come from; the annotations are kept as arrays."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hrnet_fast.datasets.reading import fail
from hrnet_fast.datasets.samples import KeypointSample
from hrnet_fast.datasets.skipping import AnnotatedImages
from hrnet_fast.errors import DatasetError
from hrnet_fast.keypoints import mirror_order


@dataclass
class KeypointRow:
    """One annotation as a reader found it; see :class:`KeypointSample`. A box of NaN is the whole picture."""

    path: str
    row: str
    points: NDArray[np.float64]  # [K, 2]
    visible: NDArray[np.float64]  # [K]
    box: tuple[float, float, float, float] = (np.nan, np.nan, np.nan, np.nan)
    image_id: int = -1
    score: float = 1.0
    box_size: float = np.nan


class KeypointDataset(AnnotatedImages[KeypointSample]):
    """Samples of one person, animal or face each, decoded when they are asked for.

    Made by :func:`coco_keypoints`, :func:`mpii`, :func:`points_csv`, :func:`deeplabcut` and :func:`face_landmarks`.
    The annotations are a few arrays, which workers share without copying.

    Attributes:
        names: names of the K keypoints.
        bones: pairs of keypoints to connect in a drawing.
        flip_pairs: pairs of keypoints that mirroring swaps, or None where the list does not say.
        upper_body: keypoints of the upper body, for half-body crops.
        annotations: the file of the annotations, "" where the reader names none; a detector's boxes are of another.
        category_id: COCO's id of the category.
        skipped: what was left out.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        bones: Sequence[tuple[int, int]] = (),
        flip_pairs: Sequence[tuple[int, int]] | None = None,
        upper_body: Sequence[int] = (),
        annotations: str | os.PathLike[str] = "",
        category_id: int = 1,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(skip_broken)
        self.names = tuple(names)
        self.annotations, self.category_id = os.fspath(annotations), category_id
        self.bones = tuple((int(a), int(b)) for a, b in bones)
        order = [] if flip_pairs is None else mirror_order(flip_pairs, len(self.names))
        self.flip_pairs = None if flip_pairs is None else tuple((i, j) for i, j in enumerate(order) if i < j)
        self.upper_body = tuple(upper_body)
        self._set([])

    def fill(self, rows: Sequence[KeypointRow | DatasetError], source: str) -> KeypointDataset:
        """Take a reader's rows and errors. A box has to have an area.

        Raises:
            DatasetError: a row is broken, or no row is left.
        """
        kept: list[KeypointRow] = []
        for row in rows:
            if isinstance(row, DatasetError):
                self.raise_or_skip(row)
            elif min(row.box[2:]) <= 0:
                given = f"a box {tuple(map(float, row.box))} without an area"
                self.raise_or_skip(fail(row.path, row.row, given, "(left, top, width, height) in pixels"))
            else:
                kept.append(row)
        if not kept:
            left_out = f", {len(self.skipped)} were skipped" if self.skipped else ""
            raise fail(source, "", f"no sample{left_out}", "a list with a sample or more")
        self._set(kept)
        return self

    def _set(self, rows: Sequence[KeypointRow]) -> None:
        count = len(self.names)
        numbers: dict[str, int] = {}
        self._file = np.array([numbers.setdefault(row.path, len(numbers)) for row in rows], dtype=np.int64)
        self._paths = np.array(list(numbers), dtype=np.str_)
        self._rows = np.array([row.row for row in rows], dtype=np.str_)
        self.points = np.array([row.points for row in rows], dtype=np.float32).reshape(-1, count, 2)
        self.visible = np.array([row.visible for row in rows], dtype=np.float32).reshape(-1, count)
        self.points[self.visible <= 0] = 0
        self.boxes = np.array([row.box for row in rows], dtype=np.float32).reshape(-1, 4)
        self._image_id = np.array([row.image_id for row in rows], dtype=np.int64)
        self._score = np.array([row.score for row in rows], dtype=np.float64)
        self._box_size = np.array([row.box_size for row in rows], dtype=np.float64)

    def __len__(self) -> int:
        return len(self._file)

    def picture(self, index: int) -> str:
        """Return the path of a sample's picture."""
        return str(self._paths[self._file[index]])

    def subset(self, indices: Sequence[int]) -> KeypointDataset:
        """Return the samples of these indices."""
        part = self._copied()
        for name in ("_file", "_rows", "points", "visible", "boxes", "_image_id", "_score", "_box_size"):
            setattr(part, name, getattr(self, name)[list(indices)])
        return part

    def annotation(self, index: int) -> KeypointSample:
        """Return a sample without its pixels; no file is read. A box of NaN is the whole picture."""
        return KeypointSample(
            image=None,
            points=torch.from_numpy(self.points[index].copy()),
            visible=torch.from_numpy(self.visible[index].copy()),
            box=torch.from_numpy(self.boxes[index].copy()),
            path=self.picture(index),
            row=str(self._rows[index]),
            image_id=int(self._image_id[index]),
            score=float(self._score[index]),
            box_size=float(self._box_size[index]),
        )

    def read(self, index: int) -> KeypointSample:
        """Return a decoded sample.

        Raises:
            DatasetError: the picture cannot be decoded, or the box is outside of it.
        """
        found = self.annotation(index)
        image = self._pixels(found.path)
        height, width = image.shape[:2]
        box = found.box
        if bool(torch.isnan(box).any()):
            box = torch.tensor([0.0, 0.0, width, height])
        left, top, right, bottom = *box[:2].tolist(), *(box[:2] + box[2:]).tolist()
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            given = f"the box {tuple(box.tolist())} is outside of the picture of {width} x {height}"
            raise fail(found.path, found.row, given, "a box that has a part of its picture")
        return KeypointSample(**{**vars(found), "image": image, "box": box})


def pairs_of_names(names: Sequence[str]) -> tuple[tuple[int, int], ...] | None:
    """Return the pairs of keypoints whose names differ in left and right, or None where no name says a side.

    Sides are the words left and right anywhere, and the letters l and r that ``_``, ``-``, ``.`` or a blank separates.
    """
    sides = {"left": "right", "right": "left", "l": "r", "r": "l"}
    lower = [name.lower() for name in names]

    def mirrored(name: str) -> str:
        swapped = re.sub("left|right", lambda found: sides[found[0]], name)
        return re.sub(r"(?:(?<=^)|(?<=[_\-. ]))[lr](?=$|[_\-. ])", lambda found: sides[found[0]], swapped)

    places = {name: i for i, name in enumerate(lower)}
    pairs = {(min(i, j), max(i, j)) for i, n in enumerate(lower) if (j := places.get(mirrored(n), i)) != i}
    return tuple(sorted(pairs)) or None


def points_box(points: NDArray[np.float64], visible: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return the square around whole pixels that hold the visible points, as the authors' ``cofw.py`` has it.

    Without a visible point it is the whole picture (NaN); with one, a square of one pixel.
    """
    seen = points[visible > 0]
    if not len(seen):
        return (np.nan, np.nan, np.nan, np.nan)
    first, last = np.floor(seen.min(0)), np.ceil(seen.max(0))
    side = max(1.0, float((last - first).max()))
    left, top = ((first + last) / 2 - side / 2).tolist()
    return (left, top, side, side)
