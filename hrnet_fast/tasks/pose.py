"""Top-down keypoints of persons (section 4) and landmarks of faces (Appendix D)."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hrnet_fast.errors import InputError
from hrnet_fast.tasks import draw
from hrnet_fast.tasks.heatmaps import COCO_FLIP, COCO_KEYPOINTS, COCO_SKELETON, decode, flip_back, to_image
from hrnet_fast.tasks.images import crop, fit_box, to_tensor
from hrnet_fast.tasks.pixels import as_channels
from hrnet_fast.tasks.prediction import Box, Network, Options, Prediction


def predict_keypoints(model: Network, image: Image.Image, options: Options) -> Prediction:
    """Find the keypoints of every box; with 17 of them, name and connect them as COCO does."""
    coco = model.config.head.num_outputs == len(COCO_KEYPOINTS)
    if options.flip and not coco:
        raise InputError(
            f"flip needs to know which keypoints mirror each other; that is known for COCO's 17, and this network has "
            f"{model.config.head.num_outputs}."
        )
    pairs = COCO_FLIP if options.flip else None
    people = _find(model, image, options, size=(256, 192), padding=1.25, pairs=pairs)
    names = COCO_KEYPOINTS if coco else tuple(str(i) for i in range(model.config.head.num_outputs))
    data = {"people": [{"box": p["box"], "keypoints": _named(p, names)} for p in people]}
    bones = COCO_SKELETON if coco else ()
    picture = draw.keypoints(image, [p["points"] for p in people], [p["scores"] for p in people], bones, options)
    return Prediction(data, picture)


def predict_landmarks(model: Network, image: Image.Image, options: Options) -> Prediction:
    """Find the landmarks of every face box."""
    if options.flip:
        raise InputError(
            "flip is not available for landmarks: which of them mirror each other depends on the data set."
        )
    faces = _find(model, image, options, size=(256, 256), padding=1.25, pairs=None)
    names = tuple(str(i) for i in range(model.config.head.num_outputs))
    data = {"faces": [{"box": f["box"], "landmarks": _named(f, names)} for f in faces]}
    picture = draw.keypoints(image, [f["points"] for f in faces], [f["scores"] for f in faces], (), options)
    return Prediction(data, picture)


def _find(
    model: Network,
    image: Image.Image,
    options: Options,
    *,
    size: tuple[int, int],
    padding: float,
    pairs: tuple[int, ...] | None,
) -> list[dict[str, Any]]:
    size = options.size or size
    image = as_channels(image, model.config.in_channels)
    # A given box is tight around the person and gets room; the whole image has it already.
    boxes = [fit_box(b, size, padding) for b in options.boxes]
    boxes = boxes or [fit_box((0.0, 0.0, float(image.width), float(image.height)), size, 1.0)]
    return [_one(model, image, box, size, pairs) for box in boxes]


def _one(
    model: Network, image: Image.Image, box: Box, size: tuple[int, int], pairs: tuple[int, ...] | None
) -> dict[str, Any]:
    x = to_tensor(crop(image, box, size))
    with torch.inference_mode():
        heatmaps = _dense(model(x))
        if pairs is not None:
            heatmaps = (heatmaps + flip_back(_dense(model(x.flip(-1))), pairs)) / 2
    points, scores = decode(heatmaps[0])
    points = to_image(points, (heatmaps.shape[-2], heatmaps.shape[-1]), box)
    return {"box": [round(v, 2) for v in box], "points": points.tolist(), "scores": scores.tolist()}


def _dense(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 4:
        raise InputError("This network returns no heatmaps; take a pose or landmark checkpoint.")
    return output


def _named(person: dict[str, Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    found = zip(names, person["points"], person["scores"], strict=True)
    return [{"name": n, "x": round(x, 2), "y": round(y, 2), "score": round(s, 5)} for n, (x, y), s in found]
