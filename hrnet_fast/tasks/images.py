"""Reading of image files, and conversion to network inputs: crops and normalised tensors."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hrnet_fast.errors import InputError
from hrnet_fast.keypoints import Box, fit_box, warp_matrix
from hrnet_fast.tasks.pixels import MEAN, STATISTICS, STD, per_band, to_8bit

__all__ = ["MEAN", "STD", "SUFFIXES", "crop", "find_images", "fit_box", "read_image", "to_tensor"]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: str | os.PathLike[str], channels: int = 3) -> Image.Image:
    """Return an image as RGB, grey or RGBA by `channels` (3, 1, 4), rotated by its EXIF orientation.

    Raises:
        InputError: the file does not exist, is no image, or its pixels cannot be scaled
            (:func:`~hrnet_fast.tasks.pixels.to_8bit`).
    """
    try:
        with Image.open(path) as image:
            found = ImageOps.exif_transpose(to_8bit(image, str(path), channels))
            found.filename = str(path)  # type: ignore[attr-defined]  # as an opened image has it
            return found
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such image.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as an image ({str(error)[:120]}).") from error


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """Return the path of an image, or the paths of the images in a folder, sorted by name.

    Raises:
        InputError: the path does not exist, or the folder has no images.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"{path}: holds no image ({', '.join(SUFFIXES)}).")
        return found
    if not path.exists():
        raise InputError(f"{path}: no such image or folder.")
    return [path]


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB, grey or RGBA image as float32 [1, C, H, W], normalised by ImageNet statistics."""
    channels = len(image.getbands())
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).view(image.height, image.width, channels)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in STATISTICS[channels])
    return (pixels.permute(2, 0, 1)[None].float() / 255 - mean) / std


def crop(image: Image.Image, box: Box, size: tuple[int, int], method: str = "msra") -> Image.Image:
    """Return the part of `image` inside `box`, resampled bilinearly to `size` (H, W); pixels outside are black.

    The sampling is that of the code that trains with `method`. For ``face`` whole pixels are cropped and resized
    (authors' ``lib/utils/transforms.py::crop``). For the others it is OpenCV's ``warpAffine`` with
    :func:`~hrnet_fast.keypoints.warp_matrix`, where pixel 0 of the result is at the box's corner.
    """
    if method == "face":
        return _face_crop(image, box, size)
    matrix = warp_matrix(box, size, method)
    columns, right = _bilinear_taps(box[0], float(matrix[0, 0]), size[1], image.width)
    rows, down = _bilinear_taps(box[1], float(matrix[1, 1]), size[0], image.height)
    pixels = np.asarray(ImageOps.expand(image, 1))  # a black border
    pixels = pixels.reshape(*pixels.shape[:2], -1)  # grey images have no channel axis

    def along(which: NDArray[np.intp]) -> NDArray[np.float64]:
        first, second = (pixels[which[:, None], columns[i]].astype(np.float64) for i in (0, 1))
        mean: NDArray[np.float64] = first + (second - first) * right[None, :, None]
        return mean

    above, below = along(rows[0]), along(rows[1])
    cropped = np.rint(above + (below - above) * down[:, None, None]).astype(np.uint8)
    return Image.fromarray(cropped[..., 0] if cropped.shape[2] == 1 else cropped)


def _bilinear_taps(start: float, scale: float, count: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the two pixels [2, count] beside each sample, in the image with a border of 1, and the second's weight."""
    position = start + np.arange(count) / scale
    first = np.floor(position)
    return np.clip(np.stack([first, first + 1]) + 1, 0, size + 1).astype(np.intp), position - first


def _face_crop(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Crop whole pixels and resize them; a box more than twice as large as `size` shrinks the image first."""
    factor = box[3] / size[0]
    if factor >= 2:
        shrunk = (math.floor(image.width / factor), math.floor(image.height / factor))
        if max(shrunk) < 2 or min(shrunk) < 1:  # the image vanishes
            return Image.new(image.mode, (size[1], size[0]))
        image = per_band(image, lambda band: band.resize(shrunk, Image.Resampling.BILINEAR))
        box = (box[0] / factor, box[1] / factor, box[2] / factor, box[3] / factor)
    left, top, width, height = box
    step_x, step_y = width / size[1], height / size[0]
    # The authors convert pixels counted from 1 and truncate.
    corners = (left - step_x, top - step_y, left + width - step_x, top + height - step_y)
    first_x, first_y, last_x, last_y = (math.trunc(round(c, 9)) + 1 for c in corners)
    whole = image.crop((first_x, first_y, max(last_x, first_x + 1), max(last_y, first_y + 1)))
    return per_band(whole, lambda band: band.resize((size[1], size[0]), Image.Resampling.BILINEAR))
