"""Made predictions and targets, and the figures that the upstreams' own code gave for them.

``tests/golden/metrics.npz`` has the figures. On what the functions here return ran: the authors' pose code
(``lib/dataset/coco.py::evaluate`` with pycocotools, ``lib/nms/nms.py``, ``lib/dataset/mpii.py::evaluate``,
``lib/core/evaluate.py::accuracy``), their face code (``lib/core/evaluation.py::compute_nme`` and the counts of
``lib/core/function.py``), their segmentation code (``lib/core/function.py::testval`` of ``pytorch-v1.1`` and
``HRNet-OCR``, which agree), their classification code (``lib/core/evaluate.py::accuracy``) and mmpose 1.3.2
(``keypoint_pck_accuracy``).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrnet_fast.keypoints import KEYPOINT_SETS

FACES = {"wflw": 98, "300w": 68, "cofw": 29, "aflw": 19}


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """Return the figures by name."""
    with np.load(Path(__file__).parent.parent / "golden" / "metrics.npz") as file:
        return {key: file[key] for key in file.files}


def poses() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return COCO annotations of persons in 12 images, and float32 predictions for them with duplicates.

    The predictions are points [N, 17, 2], scores [N, 17], image_ids, areas and box_scores [N].
    """
    draw = np.random.default_rng(17)
    annotations: list[dict[str, Any]] = []
    found: list[tuple[np.ndarray, np.ndarray, int, float, float]] = []
    for image in range(1, 13):
        for _ in range(int(draw.integers(1, 6))):
            size = draw.uniform(30, 260, 2)
            corner = draw.uniform(0, 300, 2)
            points = corner + size * draw.uniform(0, 1, (17, 2))
            visible = draw.choice([0, 1, 2], 17, p=[0.25, 0.15, 0.6])
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": 1, "iscrowd": 0,
                "area": float(0.6 * size.prod()), "bbox": [*corner.tolist(), *size.tolist()],
                "num_keypoints": int((visible > 0).sum()),
                "keypoints": np.column_stack([points * (visible > 0)[:, None], visible]).ravel().tolist(),
            })  # fmt: skip
            for spread in draw.uniform(0.005, 0.09, int(draw.integers(1, 4))):
                moved = points + spread * np.sqrt(size.prod()) * draw.standard_normal((17, 2))
                score = float(draw.uniform(0.3, 1.0))
                found.append((moved, draw.uniform(0, 1, 17), image, float(1.25**2 * size.prod()), score))
    category = {"id": 1, "name": "person", "keypoints": list(KEYPOINT_SETS["coco"].names), "skeleton": []}
    images = [{"id": image, "width": 640, "height": 640, "file_name": f"{image:012d}.jpg"} for image in range(1, 13)]
    order = draw.permutation(len(found))
    columns = [np.array([found[i][k] for i in order]) for k in range(5)]
    names = ("points", "scores", "image_ids", "areas", "box_scores")
    predictions = {name: torch.from_numpy(column) for name, column in zip(names, columns, strict=True)}
    predictions["points"], predictions["scores"] = predictions["points"].float(), predictions["scores"].float()
    return {"images": images, "annotations": annotations, "categories": [category]}, predictions


def mpii() -> dict[str, Tensor]:
    """Return float64 points and targets [40, 16, 2] counted from 0, visible [40, 16] and head_boxes [40, 4]."""
    draw = np.random.default_rng(16)
    targets = draw.uniform(50, 600, (40, 16, 2))
    corner, size = draw.uniform(50, 500, (40, 2)), draw.uniform(15, 90, (40, 2))
    spread = draw.uniform(0.05, 0.6, (40, 1, 1)) * size.mean(1)[:, None, None]
    points = targets + spread * draw.standard_normal((40, 16, 2))
    made = {
        "points": points,
        "targets": targets,
        "visible": (draw.uniform(size=(40, 16)) < 0.8).astype(np.float64),
        "head_boxes": np.concatenate([corner, corner + size], 1),
    }
    return {name: torch.from_numpy(value) for name, value in made.items()}


def peaks() -> tuple[Tensor, Tensor]:
    """Return whole heatmap pixels of peaks and of their targets [9, 5, 2] in maps of 24 rows and 16 columns."""
    draw = np.random.default_rng(24)
    targets = draw.integers(0, (16, 24), (9, 5, 2))
    points = np.clip(targets + draw.integers(-1, 2, (9, 5, 2)), 0, (15, 23))
    return torch.from_numpy(points), torch.from_numpy(targets)


def faces(name: str) -> dict[str, Tensor]:
    """Return float32 points and targets [50, K, 2] and sizes [50] of a set of :data:`FACES`."""
    draw = np.random.default_rng(FACES[name])
    targets = draw.uniform(20, 236, (50, FACES[name], 2))
    points = targets + draw.uniform(1, 14, (50, 1, 1)) * draw.standard_normal(targets.shape)
    made = {"points": points, "targets": targets, "sizes": draw.uniform(80, 200, 50)}
    return {key: torch.from_numpy(value).float() for key, value in made.items()}


def segmentation() -> list[tuple[Tensor, Tensor]]:
    """Return three batches of float32 logits [2, 7, 24, 40] and labels [2, 24, 40] with 255; class 5 never occurs."""
    draw = np.random.default_rng(7)
    batches = []
    for _ in range(3):
        labels = draw.choice([0, 1, 2, 3, 4, 6, 255], (2, 24, 40), p=[0.4, 0.2, 0.15, 0.1, 0.04, 0.01, 0.1])
        logits = draw.standard_normal((2, 7, 24, 40))
        logits += 2 * (labels[:, None] == np.arange(7)[:, None, None])
        logits[:, 5] -= 100
        batches.append((torch.from_numpy(logits).float(), torch.from_numpy(labels)))
    return batches


def classification() -> tuple[Tensor, Tensor]:
    """Return float32 logits [96, 20] and labels [96]."""
    draw = np.random.default_rng(20)
    labels = draw.integers(0, 20, 96)
    logits = draw.standard_normal((96, 20)) + 1.2 * (labels[:, None] == np.arange(20))
    return torch.from_numpy(logits).float(), torch.from_numpy(labels)
