"""What the readers return: dataclasses of pictures with points, with a class per pixel, and with boxes of objects."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KeypointSample:
    """One person, animal or face in one picture.

    Attributes:
        image: uint8 RGB [H, W, 3] as stored, without the EXIF orientation (the upstreams' points belong to those
            pixels). None from :meth:`~hrnet_fast.datasets.KeypointDataset.annotation`.
        points: float32 [K, 2] as (x, y) in picture pixels, 0 at the centre of the first; 0 where invisible.
        visible: float32 [K], 1 or 0. Keypoints that are labelled but hidden count as visible, as in every upstream.
        box: float32 [4] as (left, top, width, height) in picture pixels, before it is fitted to the input's aspect.
        path: the picture's file.
        row: the annotation's id or the row of the list.
        image_id: COCO's id of the picture, -1 for other sources.
        score: the detector's score; 1 for annotated boxes.
        box_size: AFLW's length in pixels by which errors are divided; NaN for other sources.
    """

    image: Tensor | None
    points: Tensor
    visible: Tensor
    box: Tensor
    path: str
    row: str
    image_id: int = -1
    score: float = 1.0
    box_size: float = float("nan")


@dataclass(frozen=True)
class SegmentationSample:
    """One picture with a class per pixel.

    Attributes:
        image: as in :class:`KeypointSample`.
        labels: uint8 [H, W], training classes and the ignored label; None for pictures without a mask.
        path: the picture's file.
        row: the row of the list, or "".
    """

    image: Tensor
    labels: Tensor | None
    path: str
    row: str


@dataclass(frozen=True)
class DetectionSample:
    """One picture with its objects.

    Attributes:
        image: as in :class:`KeypointSample`; None from :meth:`~hrnet_fast.datasets.DetectionDataset.annotation`.
        boxes: float32 [M, 4] as x1, y1, x2, y2 in picture pixels, 0 at the left and upper border of the first.
        labels: int64 [M], from 0.
        ignored: float32 [K, 4], boxes of crowds and of objects that are marked as difficult.
        path: the picture's file.
        row: the picture's number or the row of the list.
        image_id: COCO's id of the picture, or its place in the list.
        masks: uint8 [M, H, W] of 0 and 1; None where they are not read.
        semantic: uint8 [H, W], the class of each pixel, for detectors with a semantic branch; None where not read.
    """

    image: Tensor | None
    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    path: str
    row: str
    image_id: int
    masks: Tensor | None = None
    semantic: Tensor | None = None


@dataclass(frozen=True)
class SkippedSample:
    """A sample that cannot be used, in place of it where ``skip_broken=True``.

    Attributes:
        path: the file.
        row: the row, annotation or mask that is meant, "" for the whole file.
        reason: the message of the :class:`~hrnet_fast.DatasetError` that would have been raised.
    """

    path: str
    row: str
    reason: str
