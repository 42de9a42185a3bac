"""Top-down keypoints of persons (section 4) and landmarks of faces (Appendix D)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hrnet_fast.errors import InputError
from hrnet_fast.inference import flip_test
from hrnet_fast.keypoints import (
    METHODS,
    Box,
    Dataset,
    dataset_of,
    decode_keypoints,
    fit_box,
    needs_shift,
    to_image,
)
from hrnet_fast.keypoints.methods import check_method, named_method
from hrnet_fast.tasks import draw
from hrnet_fast.tasks.images import crop, to_tensor
from hrnet_fast.tasks.pixels import as_channels
from hrnet_fast.tasks.prediction import Network, Options, Prediction

# By the number of channels alone, 17 and 16 keypoints are persons', the others faces'.
_PERSONS = ("coco", "mpii")


@dataclass(frozen=True)
class _Convention:
    """How one run decodes: `method`, the network's data set if its channels are one's, and whether it flips."""

    method: str
    dataset: Dataset | None
    flip: bool

    def to_dict(self) -> dict[str, Any]:
        """What ran, for the answer."""
        flipped = (
            {"pairs": self.dataset.name, "shift": needs_shift(self.method)} if self.flip and self.dataset else None
        )
        return {"decode": self.method, "flip": flipped}


def decoding_method(model: Network, options: Options) -> str:
    """Return the method that decodes the network's heatmaps: the option's or the network's own.

    Raises:
        InputError: an unknown method.
    """
    named = named_method(model)
    method = options.decode or (named if named in METHODS else "msra")
    check_method("decode", method)
    return method


def predict_keypoints(model: Network, image: Image.Image, options: Options) -> Prediction:
    """Find the keypoints of every box; COCO's 17 and MPII's 16 are named and connected."""
    convention = _resolve_convention(model, options, persons=True)
    people = _predict_boxes(model, image, options, convention, size=(256, 192))
    names = _keypoint_names(model, convention)
    data = {**convention.to_dict(), "people": [{"box": p["box"], "keypoints": _named_points(p, names)} for p in people]}
    bones = convention.dataset.bones if convention.dataset else ()
    picture = draw.keypoints(image, [p["points"] for p in people], [p["scores"] for p in people], bones, options)
    return Prediction(data, picture)


def predict_landmarks(model: Network, image: Image.Image, options: Options) -> Prediction:
    """Find the landmarks of every face box."""
    convention = _resolve_convention(model, options, persons=False)
    faces = _predict_boxes(model, image, options, convention, size=(256, 256))
    names = _keypoint_names(model, convention)
    data = {**convention.to_dict(), "faces": [{"box": f["box"], "landmarks": _named_points(f, names)} for f in faces]}
    picture = draw.keypoints(image, [f["points"] for f in faces], [f["scores"] for f in faces], (), options)
    return Prediction(data, picture)


def _resolve_convention(model: Network, options: Options, *, persons: bool) -> _Convention:
    channels = model.config.head.num_outputs
    dataset = dataset_of(channels)
    if dataset is not None and (dataset.name in _PERSONS) is not persons:
        dataset = None
    if options.flip and dataset is None:
        known = "COCO's 17 and MPII's 16" if persons else "WFLW's 98, 300W's 68, COFW's 29 and AFLW's 19"
        raise InputError(
            f"flip needs to know which keypoints mirror each other; that is known for {known}, and this network has "
            f"{channels}. hrnet_fast.flip_test takes pairs of any network."
        )
    return _Convention(decoding_method(model, options), dataset, options.flip)


def _keypoint_names(model: Network, convention: _Convention) -> tuple[str, ...]:
    return convention.dataset.names if convention.dataset else tuple(map(str, range(model.config.head.num_outputs)))


def _predict_boxes(
    model: Network, image: Image.Image, options: Options, convention: _Convention, *, size: tuple[int, int]
) -> list[dict[str, Any]]:
    size = options.size or size
    image = as_channels(image, model.config.in_channels)
    # A given box is tight around the person and gets room; the whole image has it already.
    boxes = [fit_box(b, size) for b in options.boxes]
    boxes = boxes or [fit_box((0.0, 0.0, float(image.width), float(image.height)), size, 1.0)]
    return [_predict_box(model, image, box, size, convention) for box in boxes]


def _predict_box(
    model: Network, image: Image.Image, box: Box, size: tuple[int, int], convention: _Convention
) -> dict[str, Any]:
    x = to_tensor(crop(image, box, size, convention.method))
    with torch.inference_mode():
        if convention.flip and convention.dataset:
            shift = needs_shift(convention.method)
            heatmaps = flip_test(
                lambda images: _check_heatmaps(model(images)), x, convention.dataset.pairs, shift=shift
            )
        else:
            heatmaps = _check_heatmaps(model(x))
        points, scores = decode_keypoints(heatmaps, size, convention.method)
        points = to_image(points, torch.tensor([box]), size)
    return {"box": [round(v, 2) for v in box], "points": points[0].tolist(), "scores": scores[0].tolist()}


def _check_heatmaps(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 4:
        raise InputError("This network returns no heatmaps; take a pose or landmark checkpoint.")
    return output


def _named_points(person: dict[str, Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    found = zip(names, person["points"], person["scores"], strict=True)
    return [{"name": n, "x": round(x, 2), "y": round(y, 2), "score": round(s, 5)} for n, (x, y), s in found]
