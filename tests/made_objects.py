"""Pictures with objects in COCO's format, and recipes of tiny detectors for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from hrnet_fast.recipes import Recipe, get_recipe

NETWORK = (
    "width: 4, channels: 8, num_blocks: 1, num_modules: [1, 1, 1], stage1_channels: 4, stage1_blocks: 1, "
    "stem_channels: 8"
)
STAGE = "fc_channels: 16, sample: {number: 16}"
RPN = "rpn: {channels: 8, anchors: {scales: [4]}, train_proposals: {per_image: 40}, test_proposals: {per_image: 20}}"
OPTIONS = {
    "faster_rcnn": f"{NETWORK}, {RPN}, roi: {{stages: {{{STAGE}}}}}",
    "mask_rcnn": f"{NETWORK}, {RPN}, roi: {{stages: {{{STAGE}}}, mask: {{channels: 8, num_convs: 1}}}}",
    "htc": f"{NETWORK}, {RPN}, roi: {{stages: {{{STAGE}}}, mask: {{channels: 8, num_convs: 1}}, "
    "semantic: {num_classes: 2, channels: 8, num_convs: 1}}",
    "fcos": f"{NETWORK}, fcos: {{channels: 8, num_convs: 1, groups: 2}}",
}


def save_objects(folder: Path, count: int = 5, parts: tuple[str, ...] = ("train", "val")) -> Path:
    """Save ``PART/`` and ``PART.json``: bright and dark rectangles on noise, a crowd, and a picture of nothing.

    ``maps/`` has the rectangles as classes of pixels.
    """
    for part in parts:
        images, annotations = [], []
        for i in range(count):
            draw = np.random.default_rng(i)
            pixels = draw.integers(90, 160, (48 + 8 * (i % 2), 64, 3), dtype=np.uint8)
            classes = np.zeros(pixels.shape[:2], dtype=np.uint8)
            for k in range(0 if i == 1 else 2 + i % 2):
                x, y = draw.integers(0, 40), draw.integers(0, 28)
                w, h = draw.integers(12, 24), draw.integers(12, 20)
                pixels[y : y + h, x : x + w] = 240 if k % 2 else 10
                classes[y : y + h, x : x + w] = 1
                box = [int(v) for v in (x, y, w, h)]
                outline = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": i, "category_id": 1 + k % 2, "bbox": box,
                        "area": float(w * h), "iscrowd": int(k == 2), "segmentation": [[int(v) for v in outline]],
                    }
                )  # fmt: skip
            name = f"{i}.png"
            for place, values in ((folder / part, pixels), (folder / "maps", classes)):
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(place / name)
            images.append({"id": i, "file_name": name, "height": pixels.shape[0], "width": 64})
        categories = [{"id": 1, "name": "dark"}, {"id": 2, "name": "bright"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{part}.json").write_text(json.dumps(content))
    return folder


def detector_settings(kind: str = "faster_rcnn", *more: str) -> list[str]:
    """Return changes of ``small/bccd`` that make a tiny detector of the objects above."""
    masks = ", masks: true" if kind in ("mask_rcnn", "htc") else ""
    masks += ", semantic: maps" if kind == "htc" else ""
    return [
        f"model={{name: {kind}, options: {{{OPTIONS[kind]}}}}}",
        "data={layout: coco_instances, train: {annotations: train.json, images: train"
        f"{masks}}}, val: {{annotations: val.json, images: val}}, workers: 0}}",
        "inputs.picture={long_side: 96, short_side: 48}", "inputs.scales=[[96, 48], [96, 64]]", "loop.epochs=2",
        "loop.batch_size=2", "loop.evaluate_every=1", "schedule.warmup_iterations=2", *more,
    ]  # fmt: skip


def detector_recipe(kind: str = "faster_rcnn", *more: str) -> Recipe:
    return get_recipe("small/bccd").override(*detector_settings(kind, *more))
