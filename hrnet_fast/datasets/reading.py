"""Reading of pictures, masks and lists, with one error that names the file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hrnet_fast.datasets.matlab_files import matlab_picture, matlab_place
from hrnet_fast.datasets.picture_decoding import quickly_decoded, quickly_decoded_classes
from hrnet_fast.errors import DatasetError, InputError, shown

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_COLOURS = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")
_INDICES = ("L", "P", "1", "I", "I;16", "I;16L", "I;16B", "I;16N")
_BROKEN = (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError)


def fail(path: str | os.PathLike[str], row: str, given: str, accepted: str) -> DatasetError:
    """Return the error for a file: what was found there, and what is accepted."""
    place = f"{os.fspath(path)}{f' ({row})' if row else ''}"
    return DatasetError(f"{place}: {given}; accepted is {accepted}.", path=os.fspath(path), row=row)


def check_folder(what: str, folder: str | os.PathLike[str]) -> Path:
    """Return an existing folder.

    Raises:
        InputError: `folder` is no path.
        DatasetError: there is no such folder.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError(f"{what}: {shown(folder)} given; accepted is a folder's path.")
    if not os.path.isdir(folder):
        raise fail(folder, "", "no such folder", "the folder of a data set")
    return Path(folder)


def image_files(folder: Path) -> list[Path]:
    """Return the pictures in `folder` and the folders in it, sorted by path.

    Raises:
        DatasetError: the folder has none.
    """
    found = sorted(p for p in check_folder("image_files", folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise fail(folder, "", "no picture in this folder", f"a folder with files of {', '.join(SUFFIXES)}")
    return found


@contextmanager
def _reported(path: str, what: str) -> Iterator[None]:
    """Let what fails to open or to decode raise DatasetError."""
    try:
        yield
    except DatasetError:
        raise
    except FileNotFoundError:
        raise fail(path, "", f"no such {what}", "an existing file") from None
    except _BROKEN as error:
        raise fail(path, "", f"cannot be decoded ({str(error)[:120]})", f"a whole {what} file") from error


def read_pixels(path: str) -> Tensor:
    """Return a picture as uint8 RGB [H, W, 3], without its EXIF orientation.

    Args:
        path: a file, or a picture in a MATLAB file (:func:`~hrnet_fast.datasets.matlab_files.matlab_picture`).

    Raises:
        DatasetError: the file does not exist, cannot be decoded as a whole, or has other pixels than 8 bits.
    """
    decoded = quickly_decoded(path)
    if decoded is not None:
        return decoded
    if matlab_place(path) is not None:
        with _reported(path, "picture"):
            return torch.from_numpy(matlab_picture(path))
    with _reported(path, "picture"), Image.open(path) as image:
        if image.mode not in _COLOURS:
            raise fail(path, "", f"a picture of mode {image.mode}", "a picture of 8 bits a channel")
        return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB")))


def read_classes(path: str) -> NDArray[Any]:
    """Return a mask's values as integers [H, W]: grey values, or the indices of a palette.

    Raises:
        DatasetError: the file does not exist, cannot be decoded, or has several channels.
    """
    decoded = quickly_decoded_classes(path)
    if decoded is not None:
        return decoded
    with _reported(path, "mask"), Image.open(path) as image:
        if image.mode not in _INDICES:
            raise fail(path, "", f"a mask of mode {image.mode}", "a mask of one channel with a class per pixel")
        values = np.array(image)
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def read_text(path: str | os.PathLike[str]) -> str:
    """Return a text file in UTF-8.

    Raises:
        DatasetError: it does not exist or is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({str(error)[:120]})"
        raise fail(path, "", reason, "a text file in UTF-8") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return a JSON file's content.

    Raises:
        DatasetError: it does not exist or is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise fail(path, f"line {error.lineno}", f"no JSON ({error.msg})", "a JSON file") from error
    except (ValueError, RecursionError) as error:  # an integer of too many digits, lists in lists
        raise fail(path, "", f"no JSON ({str(error)[:80]})", "a JSON file") from error


def read_rows(path: str | os.PathLike[str]) -> list[list[str]]:
    """Return the rows of a CSV file, without blank lines at its end.

    Raises:
        DatasetError: it does not exist, is empty, or is no table.
    """
    lines = read_text(path).splitlines()
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    except csv.Error as error:
        raise fail(path, "", f"no table ({error})", "a table with a header") from error
    while rows and not any(rows[-1]):
        rows.pop()
    if not rows:
        raise fail(path, "", "an empty file", "a table with a header")
    return rows


def read_number(path: str | os.PathLike[str], row: str, cell: Any, *, missing: bool = False) -> float:
    """Return a cell as a number; NaN for an empty one if `missing` is allowed.

    Raises:
        DatasetError: the cell is no finite number.
    """
    try:
        value = float("nan") if missing and cell in ("", "NA", "None") else float(cell)
    except (TypeError, ValueError):
        value = float("inf")
    if np.isinf(value) or (np.isnan(value) and not missing):
        raise fail(path, row, f"{shown(cell)} in place of a number", "a finite number")
    return value
