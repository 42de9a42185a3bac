"""Pictures, masks and lists for the tests of the readers, made as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

UPPER = tuple(range(11))
PAIRS = [(i, i + 1) for i in range(1, 17, 2)]
MOUSE = Path(__file__).parents[1] / "data" / "mouse"


def pattern(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return uint8 RGB [H, W, 3] of edges and gradients, the same on every machine."""
    y, x, channel = np.ogrid[:height, :width, :3]
    blocks = ((x // 5 + y // 7 + seed) % 3) * 60
    return ((blocks + 3 * x + 2 * y + 41 * channel + 17 * seed + x * y // 9) % 256).astype(np.uint8)


def seeded_points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 17 points [17, 2] in and around a picture of 80 x 60, and which of them are visible [17]."""
    draw = np.random.default_rng(seed)
    return draw.integers(-4, 70, (17, 2)).astype(np.float64), (draw.random(17) < 0.8).astype(np.float64)


def save_picture(path: Path, height: int = 24, width: int = 32, seed: int = 0) -> Path:
    """Save a pattern as a picture; PNG keeps its values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern(height, width, seed)).save(path)
    return path


def save_mask(path: Path, values: Any, height: int = 24, width: int = 32) -> Path:
    """Save a mask with `values`, in turns by column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = np.array(values)[np.arange(width) % len(values)]
    Image.fromarray(np.broadcast_to(columns, (height, width)).astype(np.uint8)).save(path)
    return path


def coco_annotation(number: int, **changes: Any) -> dict[str, Any]:
    """Return an annotation of three keypoints, of which the last is not labelled."""
    made = {
        "id": number, "image_id": 1, "category_id": 1, "bbox": [4.0, 2.0, 10.0, 12.0], "area": 90.0, "iscrowd": 0,
        "keypoints": [5, 6, 2, 9, 7, 1, 0, 0, 0],
    }  # fmt: skip
    return made | changes


def save_coco(folder: Path, annotations: list[dict[str, Any]], **category: Any) -> Path:
    """Save a picture of 32 x 24 and annotations in COCO's format; return the file of annotations."""
    save_picture(folder / "one.png")
    kind = {"id": 1, "name": "fly", "keypoints": ["head", "left_wing", "right_wing"], "skeleton": [[1, 2], [1, 3]]}
    content = {
        "images": [{"id": 1, "file_name": "one.png", "height": 24, "width": 32}],
        "categories": [kind | category],
        "annotations": annotations,
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
