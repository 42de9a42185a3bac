"""From pictures to a detector's input: scaling, normalisation and padding as in mmdetection's test pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from hrnet_fast.detection.detector_config import PictureConfig
from hrnet_fast.detection.results import ImageMeta
from hrnet_fast.errors import InputError, shown
from hrnet_fast.tasks.images import read_image
from hrnet_fast.tasks.pixels import as_channels


def prepare(pictures: Sequence[Any], config: PictureConfig, like: Tensor) -> tuple[Tensor, list[ImageMeta]]:
    """Return the batch [N, 3, H, W] of pictures and their sizes.

    A picture is scaled bilinearly, with its ratio kept and its sizes rounded to pixels, until its short or its long
    side has the configured length; values are rounded to 8 bits, as after OpenCV's ``resize``.

    Args:
        pictures: each a path, a Pillow image, or RGB bytes [H, W, 3] as an array or tensor.
        config: sizes and statistics.
        like: a tensor with the dtype and device of the result.

    Raises:
        InputError: a picture is something else, or there is none.
    """
    if not pictures:
        raise InputError("Detector: no picture given; accepted are one or more in a list.")
    scaled, metas = [], []
    for index, picture in enumerate(pictures):
        pixels = torch.as_tensor(_rgb(picture, index)).to(like.device)
        height, width = pixels.shape[:2]
        factor = min(config.long_side / max(height, width), config.short_side / min(height, width))
        size = max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
        x = pixels.permute(2, 0, 1)[None].float()
        if size != (height, width):
            x = interpolate(x, size, mode="bilinear", align_corners=False).round()
        scaled.append(x[0].flip(0) if config.channel_order == "bgr" else x[0])
        padded = tuple(-(-n // config.divisor) * config.divisor for n in size)
        metas.append(ImageMeta(size, (height, width), (size[1] / width, size[0] / height), (padded[0], padded[1])))
    mean, std = (torch.tensor(values, device=like.device)[:, None, None] for values in (config.mean, config.std))
    high, wide = (max(meta.padded_size[k] for meta in metas if meta.padded_size is not None) for k in (0, 1))
    batch = like.new_zeros(len(scaled), 3, high, wide)
    for out, x in zip(batch, scaled, strict=True):
        out[:, : x.shape[1], : x.shape[2]] = (x - mean) / std
    return batch, metas


def _rgb(picture: Any, index: int) -> Any:
    """Return a picture as bytes [H, W, 3]."""
    if isinstance(picture, (str, os.PathLike)):
        picture = read_image(picture)
    if isinstance(picture, Image.Image):
        return np.array(as_channels(picture, 3), dtype=np.uint8)
    kind = getattr(picture, "dtype", None)
    if kind in (np.uint8, torch.uint8) and picture.ndim == 3 and picture.shape[2] == 3 and min(picture.shape) > 0:
        return np.array(picture, order="C") if isinstance(picture, np.ndarray) else picture  # torch takes no other view
    raise InputError(
        f"Detector: picture {index} is {shown(picture)}; accepted are a path, a Pillow image, and RGB bytes [H, W, 3]. "
        "A normalised batch is one tensor [N, 3, H, W]."
    )
