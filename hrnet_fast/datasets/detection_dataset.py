"""Pictures with boxes, classes and masks of their objects, whatever list they come from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrnet_fast.datasets.object_masks import object_masks
from hrnet_fast.datasets.reading import fail, read_classes, read_json
from hrnet_fast.datasets.samples import DetectionSample
from hrnet_fast.datasets.skipping import AnnotatedImages
from hrnet_fast.errors import DatasetError

Box = tuple[float, float, float, float]


@dataclass
class PictureRow:
    """One picture as a reader found it; see :class:`DetectionSample`. Boxes are cut at the picture's borders."""

    path: str
    row: str
    image_id: int
    size: tuple[int, int]  # (height, width) as the annotations say
    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ignored: list[Box] = field(default_factory=list)
    ignored_labels: list[int] = field(default_factory=list)
    masks: list[Any] = field(default_factory=list)  # COCO's segmentation of each box, where masks are read


class DetectionDataset(AnnotatedImages[DetectionSample]):
    """Samples of one picture with its objects each, decoded when they are asked for.

    Made by :func:`coco_instances` and :func:`voc_boxes`. The boxes are a few arrays, which workers share without
    copying.

    Attributes:
        names: of the classes.
        categories: COCO's number of each class, as results have it.
        annotations: COCO's file of the annotations, "" for others.
        has_masks, has_maps: whether samples have masks, and classes of pixels.
        skipped: what was left out.
    """

    def __init__(
        self,
        names: Sequence[str],
        categories: Sequence[int],
        *,
        annotations: str | os.PathLike[str] = "",
        masks: bool = False,
        semantic: Path | None = None,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(skip_broken)
        self.names, self.categories = tuple(names), tuple(categories)
        self.annotations, self.has_masks = os.fspath(annotations), masks
        self.has_maps, self._semantic = semantic is not None, semantic
        self._set([])

    def fill(
        self, rows: Sequence[PictureRow | DatasetError], source: str, *, filter_empty: bool, least_side: int
    ) -> DetectionDataset:
        """Take a reader's pictures and errors.

        Args:
            rows: of the reader.
            source: the file to name where no picture is left.
            filter_empty: leave pictures without an object out.
            least_side: leave pictures with a side of fewer pixels out.

        Raises:
            DatasetError: a picture's annotations are broken, or no picture is left.
        """
        kept: list[PictureRow] = []
        for row in rows:
            if isinstance(row, DatasetError):
                self.raise_or_skip(row)
            elif min(row.size) >= least_side and (row.boxes or row.ignored or not filter_empty):
                kept.append(row)
        if not kept:
            left_out = f", {len(self.skipped)} were skipped" if self.skipped else ""
            raise fail(source, "", f"no picture to use{left_out}", "a list with a picture or more")
        self._set(kept)
        return self

    def _set(self, rows: Sequence[PictureRow]) -> None:
        self._paths = np.array([row.path for row in rows], dtype=np.str_)
        self._rows = np.array([row.row for row in rows], dtype=np.str_)
        self._ids = np.array([row.image_id for row in rows], dtype=np.int64)
        self._sizes = np.array([row.size for row in rows], dtype=np.int64).reshape(-1, 2)
        self._boxes = _flat([(*box, label) for row in rows for box, label in zip(row.boxes, row.labels, strict=True)])
        self._ignored = _flat(
            [(*box, label) for row in rows for box, label in zip(row.ignored, row.ignored_labels, strict=True)]
        )
        self._first = np.cumsum([0, *(len(row.boxes) for row in rows)])
        self._first_ignored = np.cumsum([0, *(len(row.ignored) for row in rows)])
        self._masks = [mask for row in rows for mask in row.masks]
        self._order = np.arange(len(rows))  # pictures of this part

    def __len__(self) -> int:
        return len(self._order)

    def picture(self, index: int) -> str:
        """Return the path of a sample's picture."""
        return str(self._paths[self._order[index]])

    def subset(self, indices: Sequence[int]) -> DetectionDataset:
        """Return the samples of these indices."""
        part = self._copied()
        part._order = self._order[list(indices)]
        return part

    def annotation(self, index: int) -> DetectionSample:
        """Return a sample without pixels, masks and semantic map; no file is read."""
        place = self._order[index]
        found = self._boxes[self._first[place] : self._first[place + 1]]
        ignored = self._ignored[self._first_ignored[place] : self._first_ignored[place + 1]]
        return DetectionSample(
            image=None,
            boxes=torch.from_numpy(found[:, :4].astype(np.float32)),
            labels=torch.from_numpy(found[:, 4].astype(np.int64)),
            ignored=torch.from_numpy(ignored[:, :4].astype(np.float32)),
            path=str(self._paths[place]),
            row=str(self._rows[place]),
            image_id=int(self._ids[place]),
        )

    def read(self, index: int) -> DetectionSample:
        """Return a decoded sample.

        Raises:
            DatasetError: a file cannot be decoded, or has another size than the annotations say.
        """
        found, place = self.annotation(index), self._order[index]
        image = self._pixels(found.path)
        size = image.shape[0], image.shape[1]
        height, width = (int(side) for side in self._sizes[place])
        if size != (height, width):
            given = f"a picture of {size[1]} x {size[0]}, while its annotations are of {width} x {height}"
            raise fail(found.path, found.row, given, "the picture that was annotated")
        masks = None
        if self.has_masks:
            encoded = self._masks[self._first[place] : self._first[place + 1]]
            masks = object_masks(encoded, size, found.path, found.row)
        return DetectionSample(**{**vars(found), "image": image, "masks": masks, "semantic": self._map(found, size)})

    def _map(self, found: DetectionSample, size: tuple[int, int]) -> Tensor | None:
        """Return the class of each pixel, of the file of the same name in the semantic folder."""
        if self._semantic is None:
            return None
        path = str(self._semantic / f"{Path(found.path).stem}.png")
        values = read_classes(path) if self.cache is None else self.cache.array(path, "map", lambda: read_classes(path))
        if values.shape != size:
            given = f"a map of {values.shape[1]} x {values.shape[0]} for a picture of {size[1]} x {size[0]}"
            raise fail(path, found.row, given, "a map of the picture's size")
        return torch.from_numpy(values.astype(np.uint8))

    def ground_truth(self) -> dict[str, Any]:
        """Return these pictures' annotations as COCO's file has them, for :class:`~hrnet_fast.metrics.COCODetectionAP`.

        Of COCO's file they are its own. Of other data, ignored objects are its crowds.
        """
        chosen, known = {int(i) for i in self._ids[self._order]}, set(self.categories)
        if self.annotations:
            content: dict[str, Any] = dict(read_json(self.annotations))
            content["images"] = [one for one in content["images"] if _is_of(one, "id", chosen)]
            content["categories"] = [one for one in content["categories"] if one["id"] in known]
            content["annotations"] = [
                {"area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0} | one
                for one in content.get("annotations", [])
                if _is_of(one, "image_id", chosen) and _is_of(one, "category_id", known)
            ]
            return content
        annotations: list[dict[str, Any]] = []
        for place in self._order:
            for rows, first, crowd in ((self._boxes, self._first, 0), (self._ignored, self._first_ignored, 1)):
                for x1, y1, x2, y2, label in rows[first[place] : first[place + 1]].tolist():
                    size = (x2 - x1, y2 - y1)
                    annotations.append(
                        {
                            "id": len(annotations) + 1, "image_id": int(self._ids[place]), "iscrowd": crowd,
                            "category_id": self.categories[int(label)], "bbox": [x1, y1, *size],
                            "area": size[0] * size[1],
                        }
                    )  # fmt: skip
        return {
            "images": [{"id": int(self._ids[place])} for place in self._order],
            "categories": [{"id": k, "name": n} for k, n in zip(self.categories, self.names, strict=True)],
            "annotations": annotations,
        }


def _is_of(entry: Any, name: str, numbers: set[int]) -> bool:
    """Whether an entry of COCO's file has one of the numbers; a broken entry that was skipped has none."""
    return isinstance(entry, dict) and isinstance(entry.get(name), (int, float)) and entry[name] in numbers


def _flat(rows: Sequence[tuple[float, ...]]) -> NDArray[np.float64]:
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def cut_box(box: Box, size: tuple[int, int], path: str | os.PathLike[str], row: str) -> Box:
    """Return a box x1, y1, x2, y2 cut at the borders of a picture of `size` (height, width).

    Raises:
        DatasetError: no part of it is in the picture.
    """
    height, width = size
    x1, y1, x2, y2 = box
    cut = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        given = f"a box from {(x1, y1)} to {(x2, y2)} outside of its picture of {width} x {height}"
        raise fail(path, row, given, "a box that has a part of its picture")
    return cut
