"""The detection task: boxes, classes and masks of objects (paper, section 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hrnet_fast.detection.coco_results import class_names, coco_results
from hrnet_fast.tasks import draw
from hrnet_fast.tasks.prediction import Network, Options, Prediction


def predict_detections(model: Network, image: Image.Image, options: Options) -> Prediction:
    """Predict the objects of an image.

    ``detections`` has COCO's result format, with the class's name as ``category``; ``image_id`` is the file's name
    without its ending, as a number if it is one. Objects whose score reaches the threshold are drawn.

    Raises:
        InputError: the number of labels differs from the classes'.
    """
    names, categories = class_names(model.config.num_classes, options.labels)
    with torch.inference_mode():
        (found,) = model([image])
    stem = Path(getattr(image, "filename", "") or "").stem
    entries: list[dict[str, Any]] = coco_results(found, categories, int(stem) if stem.isdecimal() else stem)
    for entry, label in zip(entries, found.labels.tolist(), strict=True):
        entry["category"] = names[label]
    data = {"classes": model.config.num_classes, "detections": entries}
    return Prediction(data, draw.detections(image, found, names, options.threshold))
