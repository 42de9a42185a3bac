"""Reading images and making the networks' inputs of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hrnet_fast.errors import InputError
from hrnet_fast.tasks.pixels import MEAN, STATISTICS, STD, by_bands, eight_bits
from hrnet_fast.tasks.prediction import Box

__all__ = ["MEAN", "STD", "SUFFIXES", "crop", "find_images", "fit_box", "read_image", "to_tensor"]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_image(path: str | os.PathLike[str], channels: int = 3) -> Image.Image:
    """Return an image as RGB, grey or RGBA by `channels` (3, 1, 4), turned upright by its EXIF orientation.

    Raises:
        InputError: no such file, one that is no image, or pixels that cannot be scaled
            (:func:`~hrnet_fast.tasks.pixels.eight_bits`).
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(eight_bits(image, str(path), channels))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such image.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as an image ({str(error)[:120]}).") from error


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """Return the image itself, or the images in a folder in order of name.

    Raises:
        InputError: nothing there, or a folder without images.
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
    """Return an RGB, grey or RGBA image as a normalised float32 [1, C, H, W]."""
    channels = len(image.getbands())
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).view(image.height, image.width, channels)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in STATISTICS[channels])
    return (pixels.permute(2, 0, 1)[None].float() / 255 - mean) / std


def fit_box(box: Box, size: tuple[int, int], padding: float = 1.25) -> Box:
    """Return `box` widened about its centre to the aspect ratio of `size` (H, W), then by `padding`.

    Paper, section 4, "Training": the detection box is extended to a fixed aspect ratio before cropping; the authors'
    pose repository pads it by a quarter.
    """
    left, top, width, height = box
    if width <= 0 or height <= 0:
        raise InputError(f"box {box}: width and height must be positive (left, top, width, height in pixels).")
    aspect = size[1] / size[0]
    w, h = max(width, height * aspect) * padding, max(height, width / aspect) * padding
    return (left + width / 2 - w / 2, top + height / 2 - h / 2, w, h)


def crop(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Return the part of `image` under `box`, black outside, resampled bilinearly to `size` (H, W)."""
    left, top, width, height = box
    sx, sy = width / size[1], height / size[0]
    # Pillow maps output pixel centres to input coordinates by this matrix.
    matrix = (sx, 0, left, 0, sy, top)
    return by_bands(
        image,
        lambda band: band.transform((size[1], size[0]), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR),
    )
