"""The tasks pose (top-down keypoints of persons, section 4) and landmarks (faces, Appendix D)."""

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
    KeypointSet,
    decode_keypoints,
    fit_box,
    keypoint_set_of,
    needs_shift,
    to_image,
)
from hrnet_fast.keypoints.methods import check_method, named_method
from hrnet_fast.tasks import draw
from hrnet_fast.tasks.images import crop, to_tensor
from hrnet_fast.tasks.pixels import as_channels
from hrnet_fast.tasks.prediction import Network, Options, Prediction

# Data sets of persons; the others are of faces. A network's data set is identified by its number of channels.
_PERSONS = ("coco", "mpii")


@dataclass(frozen=True)
class _Convention:
    """How one run decodes: the method, the network's data set if it is known, and whether it flips."""

    method: str
    dataset: KeypointSet | None
    flip: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the entries for the prediction's data."""
        flipped = (
            {"pairs": self.dataset.name, "shift": needs_shift(self.method)} if self.flip and self.dataset else None
        )
        return {"decode": self.method, "flip": flipped}


def decoding_method(model: Network, options: Options) -> str:
    """Return the method to decode the network's heatmaps: the option, the network's attribute, or ``msra``.

    Raises:
        InputError: the method is unknown.
    """
    named = named_method(model)
    method = options.decode or (named if named in METHODS else "msra")
    check_method("decode", method)
    return method


def predict_keypoints(model: Network, image: Image.Image, options: Options) -> Prediction:
    """Predict the keypoints in every box. COCO's 17 and MPII's 16 have names and bones.

    Raises:
        InputError: the network returns no heatmaps, or `flip` is set for an unknown data set.
    """
    convention = _resolve_convention(model, options, persons=True)
    people = _predict_boxes(model, image, options, convention, size=(256, 192))
    names = _keypoint_names(model, convention)
    data = {**convention.to_dict(), "people": [{"box": p["box"], "keypoints": _named_points(p, names)} for p in people]}
    bones = convention.dataset.bones if convention.dataset else ()
    picture = draw.keypoints(image, [p["points"] for p in people], [p["scores"] for p in people], bones, options)
    return Prediction(data, picture)


def predict_landmarks(model: Network, image: Image.Image, options: Options) -> Prediction:
    """Predict the landmarks in every face box.

    Raises:
        InputError: as :func:`predict_keypoints`.
    """
    convention = _resolve_convention(model, options, persons=False)
    faces = _predict_boxes(model, image, options, convention, size=(256, 256))
    names = _keypoint_names(model, convention)
    data = {**convention.to_dict(), "faces": [{"box": f["box"], "landmarks": _named_points(f, names)} for f in faces]}
    picture = draw.keypoints(image, [f["points"] for f in faces], [f["scores"] for f in faces], (), options)
    return Prediction(data, picture)


def _resolve_convention(model: Network, options: Options, *, persons: bool) -> _Convention:
    channels = model.config.head.num_outputs
    dataset = keypoint_set_of(channels)
    if dataset is not None and (dataset.name in _PERSONS) is not persons:
        dataset = None
    if options.flip and dataset is None:
        known = "COCO's 17 and MPII's 16" if persons else "WFLW's 98, 300W's 68, COFW's 29 and AFLW's 19"
        raise InputError(
            f"flip needs pairs of mirrored keypoints; these are known for {known}, and this network has {channels}. "
            "hrnet_fast.flip_test takes pairs for any network."
        )
    return _Convention(decoding_method(model, options), dataset, options.flip)


def _keypoint_names(model: Network, convention: _Convention) -> tuple[str, ...]:
    return convention.dataset.names if convention.dataset else tuple(map(str, range(model.config.head.num_outputs)))


def _predict_boxes(
    model: Network, image: Image.Image, options: Options, convention: _Convention, *, size: tuple[int, int]
) -> list[dict[str, Any]]:
    size = options.size or size
    image = as_channels(image, model.config.in_channels)
    # A given box is tight around the person and is padded; the whole image needs no padding.
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
