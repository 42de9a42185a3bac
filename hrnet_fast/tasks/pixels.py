"""Pictures of any kind of pixels as 8 bits per channel, and channels as networks take them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hrnet_fast.errors import InputError

logger = logging.getLogger(__name__)

# What Pillow calls pictures with so many channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# ImageNet statistics of RGB in [0, 1], which every upstream trains with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# By channels. Grey takes the means of the three; alpha has no statistics and stays in [0, 1].
STATISTICS = {1: ((0.449,), (0.226,)), 3: (MEAN, STD), 4: ((*MEAN, 0.0), (*STD, 1.0))}
_INTEGERS = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def to_8bit(image: Image.Image, name: str, channels: int = 3) -> Image.Image:
    """Return `image` with the channels that a network takes, 8 bits each.

    Integers of 16 bits are divided by 257, floating values in [0, 1] multiplied by 255, and both rounded; Pillow itself
    reads colour of 16 bits by the upper byte. Of a picture with several frames the first is read, with a note.

    Args:
        image: as Pillow opened it.
        name: of the file, for messages.
        channels: 1 (grey; colour is weighted as ITU-R 601 has it), 3 (RGB; alpha is dropped) or 4 (RGBA; opaque where
            the picture has no alpha).

    Raises:
        InputError: integers of 32 bits or signed ones, whose white is unknown; floating values outside [0, 1] or
            not finite; another number of channels.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # cameras keep a preview or a depth map there
        logger.warning("%s: the first of %d frames is read; save others as files of their own.", name, frames)
    if image.mode in _INTEGERS:
        image = _integers_to_8bit(image, name)
    elif image.mode == "F":
        image = _floats_to_8bit(image, name)
    elif image.mode == "P":  # a palette may hold transparency
        image = image.convert("RGBA")
    return as_channels(image, channels)


def _integers_to_8bit(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})  # of TIFF: bits, what zero means, signed or not
    told = image.mode != "I" or image.format in (
        "PNG",
        "PPM",
    )  # there, Pillow's 32-bit pixels are the file's 16-bit ones
    bits, zero_is_white = tags.get(258, (16 if told else 32,))[0], tags.get(262) == 0
    white = 2**bits - 1
    if bits > 16 or tags.get(339, (1,))[0] != 1 or values.min() < 0 or values.max() > white:
        raise InputError(
            f"{name}: integer pixels from {values.min()} to {values.max()}, whose white is unknown; accepted are "
            "unsigned integers of 8 or 16 bits and floating values in [0, 1]: scale the picture and save it so."
        )
    return _to_grey_8bit((white - values if zero_is_white else values) / white, image)


def _floats_to_8bit(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    # Written so that it refuses NaN.
    if not (values.min() >= 0 and values.max() <= 1):
        raise InputError(
            f"{name}: floating pixels from {values.min():g} to {values.max():g}; accepted are finite values in [0, 1]: "
            "scale the picture to that range, or save it as integers of 8 or 16 bits."
        )
    zero_is_white = getattr(image, "tag_v2", {}).get(262) == 0
    return _to_grey_8bit(1 - values if zero_is_white else values, image)


def _to_grey_8bit(shares: NDArray[np.float64], image: Image.Image) -> Image.Image:
    """Grey of shares of white; the orientation stays with it."""
    grey = Image.fromarray(np.rint(shares * 255).astype(np.uint8))
    grey.info = dict(image.info)
    return grey


def check_channels(channels: int) -> None:
    """Raise InputError unless pictures have so many channels."""
    if channels not in MODES:
        raise InputError(
            f"This network takes {channels} channels; pictures give 1 (grey), 3 (RGB) or 4 (RGBA). Call it from Python "
            f"on a tensor [N, {channels}, H, W]."
        )


def as_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return a picture as grey (1), RGB (3) or RGBA (4) of 8 bits.

    Raises:
        InputError: another number of channels, which pictures do not have.
    """
    check_channels(channels)
    mode = MODES[channels]
    if image.mode in (*_INTEGERS, "F"):  # which Pillow's conversion clips
        return to_8bit(image, "image", channels)
    return image if image.mode == mode else image.convert(mode)


def per_band(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Apply `change` to each channel of RGBA by itself: Pillow's resampling would weigh colours by alpha."""
    if image.mode != "RGBA":
        return change(image)
    return Image.merge("RGBA", [change(band) for band in image.split()])
