"""Data and settings with which the commands of training take a moment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

MOUSE = Path(__file__).parents[1] / "data" / "mouse"
SIZES = "num_blocks: 1, num_modules: [1, 1, 1], stage1_channels: 4, stage1_blocks: 1, stem_channels: 8, width: 4"
LOOP = ("loop.epochs=2", "loop.batch_size=2", "loop.evaluate_every=1", "data.workers=0")
# By the task of a recipe.
TINY = {
    "pose": (
        f"model={{name: '', options: {{head: v1, {SIZES}}}}}", "inputs.input_size=[64, 64]",
        "inputs.heatmap_size=[16, 16]", *LOOP,
    ),
    "segmentation": (f"model={{name: '', options: {{head: v2, {SIZES}}}}}", "inputs.crop_size=[32, 32]", *LOOP),
    "classification": (
        f"model={{name: '', options: {{head: ci, {SIZES}}}}}", "inputs.input_size=[32, 32]", "inputs.resize=36", *LOOP,
    ),
}  # fmt: skip


def settings(task: str, *more: str) -> list[str]:
    """Return the options of a command with the tiny settings of a task."""
    return [word for setting in (*TINY[task], *more) for word in ("--set", setting)]


def save_noise(path: Path, height: int = 40, width: int = 48, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height)).save(path)
    return path


def save_masks(folder: Path, classes: int, count: int = 2) -> Path:
    """Save ``train`` and ``val``, pictures with masks under the same names in ``trainannot`` and ``valannot``."""
    for part in ("train", "val"):
        for i in range(count):
            save_noise(folder / part / f"{i}.png", seed=i)
            (folder / f"{part}annot").mkdir(exist_ok=True)
            mask = np.random.default_rng(i).integers(0, classes, (40, 48), dtype=np.uint8)
            Image.fromarray(mask).save(folder / f"{part}annot" / f"{i}.png")
    return folder


def save_classes(folder: Path, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Save ``train`` and ``val`` with a folder of two pictures for each class."""
    for part in ("train", "val"):
        for i, name in enumerate(names):
            for k in range(2):
                save_noise(folder / part / name / f"{k}.png", seed=10 * i + k)
    return folder


def save_coco(folder: Path, names: tuple[str, ...], count: int = 2, parts: tuple[str, ...] = ("train", "val")) -> Path:
    """Save ``annotations/PART.json`` and ``PART/``: a category with these keypoints, an annotation in each picture."""
    for part in parts:
        draw = np.random.default_rng(len(part))
        annotations = [
            {
                "id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 36, 32], "area": 1000, "iscrowd": 0,
                "num_keypoints": len(names),
                "keypoints": [int(v) for k in names for v in (draw.integers(6, 38), draw.integers(6, 34), 2)],
            }
            for i in range(1, count + 1)
        ]  # fmt: skip
        images = [{"id": i, "file_name": f"{i}.png", "width": 48, "height": 40} for i in range(1, count + 1)]
        for image in images:
            save_noise(folder / part / str(image["file_name"]), seed=int(str(image["id"])))
        category = {"id": 1, "name": "fly", "keypoints": list(names), "skeleton": [[1, 2]]}
        (folder / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "categories": [category], "annotations": annotations}
        (folder / "annotations" / f"{part}.json").write_text(json.dumps(content))
    return folder
