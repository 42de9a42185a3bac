"""Detections in COCO's result format: categories of its 80 classes, boxes and run-length encoded masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hrnet_fast.detection.results import Detections
from hrnet_fast.errors import InputError

# Names of COCO's classes in the order of its detectors' outputs, and its category numbers, which have gaps.
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CATEGORIES = tuple(number for number in range(1, 91) if number not in _UNUSED)


def class_names(classes: int, labels: Sequence[str] = ()) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the name and the category number of each class.

    They are `labels` and 1, 2, ... if given; else COCO's for 80 classes; else the index as name, and 1, 2, ...

    Raises:
        InputError: there are not as many labels as classes.
    """
    if labels and len(labels) != classes:
        raise InputError(f"{len(labels)} labels given for a network of {classes} classes.")
    if not labels and classes == len(COCO_CLASSES):
        return COCO_CLASSES, COCO_CATEGORIES
    return tuple(labels) or tuple(map(str, range(classes))), tuple(range(1, classes + 1))


def coco_results(found: Detections, categories: Sequence[int], image_id: int | str) -> list[dict[str, Any]]:
    """Return an image's detections as COCO's tools read them from a result file, best first.

    Args:
        found: the detections.
        categories: number of each class.
        image_id: of the data set.

    Each has ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels), ``score``, and with masks
    ``segmentation`` (``size`` and compressed ``counts``).
    """
    boxes = torch.cat([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], dim=1).tolist()
    entries: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": categories[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes, found.scores.tolist(), found.labels.tolist(), strict=True)
    ]
    if found.masks is not None:
        for entry, mask in zip(entries, found.masks.cpu().numpy(), strict=True):
            entry["segmentation"] = encode_mask(mask)
    return entries


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask [height, width] run-length encoded as COCO's tools do, with compressed counts."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    ends = np.append(changes, mask.size) if changes.size == 0 or changes[-1] != mask.size else changes
    counts = np.diff(ends, prepend=0).tolist()
    return {"size": list(mask.shape), "counts": _compressed(counts)}


def _compressed(counts: Sequence[int]) -> str:
    """Return counts as text: from the fourth on relative to two before, five bits a character, lowest first."""
    text = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            text.append(chr((bits | (0x20 if more else 0)) + 48))
    return "".join(text)
