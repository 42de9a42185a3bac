"""The classification task: class scores of an image's centre crop (paper, Appendix B)."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from hrnet_fast.errors import InputError
from hrnet_fast.tasks import draw
from hrnet_fast.tasks.images import to_tensor
from hrnet_fast.tasks.pixels import as_channels, per_band
from hrnet_fast.tasks.prediction import Network, Options, Prediction

CROP_RATIO = 0.875  # share of the shorter side: 224 of 256, the paper's single-crop testing


def predict_classes(model: Network, image: Image.Image, options: Options) -> Prediction:
    """Return the most probable classes of the image's centre crop.

    Raises:
        InputError: the network returns no class scores, or the number of labels differs.
    """
    size = options.size or (224, 224)
    x = to_tensor(_centre_crop(as_channels(image, model.config.in_channels), size))
    with torch.inference_mode():
        logits = model(x)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise InputError("This network returns no class scores; take a classification checkpoint.")
        if options.flip:
            logits = (logits + model(x.flip(-1))) / 2
    if options.labels and len(options.labels) != logits.shape[1]:
        raise InputError(f"{len(options.labels)} labels given for a network of {logits.shape[1]} classes.")
    scores, classes = logits.float().softmax(dim=1)[0].topk(min(options.top, logits.shape[1]))
    best = [
        {
            "class": int(c),
            "name": options.labels[int(c)] if options.labels else str(int(c)),
            "score": round(float(s), 6),
        }
        for c, s in zip(classes, scores, strict=True)
    ]
    caption = [f"{b['name']}: {b['score']:.3f}" for b in best]
    return Prediction({"classes": best}, draw.captioned(image, caption))


def _centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    scale = max(height / image.height, width / image.width) / CROP_RATIO
    whole = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    resized = per_band(image, lambda band: band.resize(whole, Image.Resampling.BILINEAR))
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))
