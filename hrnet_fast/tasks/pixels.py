"""Conversion of images of any pixel type to 8 bits per channel, with the channels that a network takes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrnet_fast.errors import InputError

logger = logging.getLogger(__name__)

# Pillow's mode for each number of channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# ImageNet statistics of RGB in [0, 1], with which every upstream trains.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# (mean, std) by number of channels. Grey has the average of the three; alpha is not normalised.
STATISTICS = {1: ((0.449,), (0.226,)), 3: (MEAN, STD), 4: ((*MEAN, 0.0), (*STD, 1.0))}
_INTEGERS = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def to_8bit(image: Image.Image, name: str, channels: int = 3) -> Image.Image:
    """Return `image` with 8 bits per channel and the given number of channels.

    16-bit integers are divided by 257, floating-point values in [0, 1] multiplied by 255, and both are rounded. Pillow
    itself takes the upper byte of 16-bit colours. Only the first of several frames is read, with a warning.

    Args:
        image: as Pillow opened it.
        name: name of the file, for messages.
        channels: 1 (grey, from colours by ITU-R 601), 3 (RGB, without alpha) or 4 (RGBA, opaque if the image has no
            alpha).

    Raises:
        InputError: the pixels are 32-bit or signed integers, whose white is unknown, or floating-point values that are
            not finite or outside [0, 1]; or the number of channels is another one.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO files of cameras have a preview or a depth map as second frame
        logger.warning("%s: the first of %d frames is read; save others as files of their own.", name, frames)
    if image.mode in _INTEGERS:
        image = _integers_to_8bit(image, name)
    elif image.mode == "F":
        image = _floats_to_8bit(image, name)
    elif image.mode == "P":  # a palette may contain transparency
        image = image.convert("RGBA")
    return as_channels(image, channels)


def _integers_to_8bit(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})  # TIFF tags: bits, photometric interpretation, sample format
    sixteen_bits = image.mode != "I" or image.format in (
        "PNG",
        "PPM",
    )  # Pillow opens 16-bit files of these formats in mode I
    bits, zero_is_white = tags.get(258, (16 if sixteen_bits else 32,))[0], tags.get(262) == 0
    white = 2**bits - 1
    if bits > 16 or tags.get(339, (1,))[0] != 1 or values.min() < 0 or values.max() > white:
        raise InputError(
            f"{name}: integer pixels from {values.min()} to {values.max()}, whose white is unknown; accepted are "
            "unsigned integers of 8 or 16 bits and floating values in [0, 1]: scale the picture and save it so."
        )
    return _to_grey_8bit((white - values if zero_is_white else values) / white, image)


def _floats_to_8bit(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    # The negated condition is true for NaN.
    if not (values.min() >= 0 and values.max() <= 1):
        raise InputError(
            f"{name}: floating pixels from {values.min():g} to {values.max():g}; accepted are finite values in [0, 1]: "
            "scale the image to that range, or save it as integers of 8 or 16 bits."
        )
    zero_is_white = getattr(image, "tag_v2", {}).get(262) == 0
    return _to_grey_8bit(1 - values if zero_is_white else values, image)


def _to_grey_8bit(shares: NDArray[np.float64], image: Image.Image) -> Image.Image:
    """Return values in [0, 1] as an 8-bit grey image with the metadata of `image`, which contain its orientation."""
    grey = Image.fromarray(np.rint(shares * 255).astype(np.uint8))
    grey.info = dict(image.info)
    return grey


def check_channels(channels: int) -> None:
    """Raise InputError unless `channels` is 1, 3 or 4."""
    if channels not in MODES:
        raise InputError(
            f"This network takes {channels} channels; pictures give 1 (grey), 3 (RGB) or 4 (RGBA). Call it from Python "
            f"on a tensor [N, {channels}, H, W]."
        )


def as_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return an image as 8-bit grey (1), RGB (3) or RGBA (4).

    Raises:
        InputError: `channels` is another number.
    """
    check_channels(channels)
    mode = MODES[channels]
    if image.mode in (*_INTEGERS, "F"):  # Pillow's own conversion clips these
        return to_8bit(image, "image", channels)
    return image if image.mode == mode else image.convert(mode)


def per_band(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Apply `change` to an image, to RGBA by channel: Pillow's resampling would weight colours by alpha."""
    if image.mode != "RGBA":
        return change(image)
    return Image.merge("RGBA", [change(band) for band in image.split()])
