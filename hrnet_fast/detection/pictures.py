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
        size = fitted_size((height, width), config.long_side, config.short_side)
        x = pixels.permute(2, 0, 1)[None].float()
        if size != (height, width):
            x = interpolate(x, size, mode="bilinear", align_corners=False).round()
        scaled.append(x[0].flip(0) if config.channel_order == "bgr" else x[0])
        metas.append(scaled_meta((height, width), size, config.divisor))
    mean, std = (torch.tensor(values, device=like.device)[:, None, None] for values in (config.mean, config.std))
    batch = like.new_zeros(len(scaled), 3, *batch_size(metas))
    for out, x in zip(batch, scaled, strict=True):
        out[:, : x.shape[1], : x.shape[2]] = (x - mean) / std
    return batch, metas


def fitted_size(size: tuple[int, int], long_side: int, short_side: int) -> tuple[int, int]:
    """Return the (height, width) of a picture scaled until its long or its short side has the given length.

    The larger length is that of the long side in either order, as in mmcv's ``rescale_size``.
    """
    long_side, short_side = max(long_side, short_side), min(long_side, short_side)
    factor = min(long_side / max(size), short_side / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def scaled_meta(original: tuple[int, int], size: tuple[int, int], divisor: int) -> ImageMeta:
    """Return the sizes of a picture that was scaled from `original` to `size`, both (height, width)."""
    scale = size[1] / original[1], size[0] / original[0]
    padded = -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor
    return ImageMeta(size, original, scale, padded)


def batch_size(metas: Sequence[ImageMeta]) -> tuple[int, int]:
    """Return the (height, width) of the batch that pictures with :func:`scaled_meta` make."""
    sizes = [meta.padded_size or meta.size for meta in metas]
    return max(height for height, _ in sizes), max(width for _, width in sizes)


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
