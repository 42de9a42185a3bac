"""The segmentation task: a class for every pixel (paper, section 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from hrnet_fast.errors import InputError
from hrnet_fast.tasks import draw
from hrnet_fast.tasks.images import to_tensor
from hrnet_fast.tasks.pixels import as_channels, per_band
from hrnet_fast.tasks.prediction import Network, Options, Prediction

CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip

LIP_CLASSES = 20


def predict_segmentation(model: Network, image: Image.Image, options: Options) -> Prediction:
    """Predict the class of every pixel; logits are upsampled bilinearly to the image's size.

    The label map is an 8-bit grey image, or a 16-bit one for more than 255 classes: data sets mark ignored pixels by
    255.

    Raises:
        InputError: the network returns no logits per pixel, the number of labels differs, or `flip` is set for LIP.
    """
    if options.flip and model.config.head.num_outputs == LIP_CLASSES:
        raise InputError(
            f"flip: of LIP's {LIP_CLASSES} classes a mirror swaps left and right ones, and this network has as many. "
            "hrnet_fast.flip_test(network, x, pairs) takes pairs: [(14, 15), (16, 17), (18, 19)] for LIP, () for none."
        )
    height, width = options.size or (image.height, image.width)
    given = as_channels(image, model.config.in_channels)
    x = to_tensor(per_band(given, lambda band: band.resize((width, height), Image.Resampling.BILINEAR)))
    with torch.inference_mode():
        logits = _main_logits(model(x))
        if options.flip:
            logits = (logits + _main_logits(model(x.flip(-1))).flip(-1)) / 2
        classes = logits.shape[1]
        kind = _label_dtype(classes)
        logits = interpolate(
            logits.float(),
            size=(image.height, image.width),
            mode="bilinear",
            align_corners=model.config.align_corners,
        )
        labels: NDArray[np.integer[Any]] = logits[0].argmax(dim=0).numpy().astype(kind)
    names = options.labels or (CITYSCAPES if classes == len(CITYSCAPES) else tuple(str(i) for i in range(classes)))
    if len(names) != classes:
        raise InputError(f"{len(names)} labels given for a network of {classes} classes.")
    shares = np.bincount(labels.ravel(), minlength=classes) / labels.size
    order = np.argsort(-shares)
    data = {
        "classes": classes,
        "label_dtype": kind.__name__,
        "shares": [
            {"class": int(i), "name": names[i], "share": round(float(shares[i]), 5)} for i in order if shares[i]
        ],
    }
    return Prediction(data, draw.overlay(image, labels, classes), {"labels": Image.fromarray(labels)})


def _label_dtype(classes: int) -> type[np.unsignedinteger[Any]]:
    """Return the integer type of the label map.

    Raises:
        InputError: there are more classes than 16 bits represent.
    """
    if classes > 2**16:
        raise InputError(
            f"This network has {classes} classes; a label map of 16 bits holds up to 65536. Call the network from "
            "Python and take its logits."
        )
    return np.uint8 if classes < 2**8 else np.uint16


def _main_logits(output: object) -> Tensor:
    """Return the main logits, the last of OCR's two."""
    last = output[-1] if isinstance(output, (list, tuple)) else output
    if not isinstance(last, Tensor) or last.dim() != 4:
        raise InputError("This network returns no logits per pixel; take a segmentation checkpoint.")
    return last
