"""Decoding of JPEG files by torchvision's operator and of PNG files by kornia-rs, where they give Pillow's pixels."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

JPEGDecoder = Callable[[Tensor], Tensor]
PNGDecoder = Callable[[bytes, tuple[int, int], str], NDArray[np.uint8]]

# Of a PNG file: signature, the first chunk's name, width, height, bits of a channel, colour type, interlacing.
_PNG_HEADER = struct.Struct(">8s4x4sIIBBxxB")
_PNG_START = (b"\x89PNG\r\n\x1a\n", b"IHDR")
# Colour types of PNG that need no conversion: RGB as pixels, grey values and the indices of a palette as classes.
_COLOUR_TYPES = {"rgb": (2,), "mono": (0, 3)}


def quickly_decoded(path: str) -> Tensor | None:
    """Return a file's pixels, uint8 RGB [H, W, 3], or None for a file that Pillow has to read or to refuse."""
    if path.lower().endswith(".png"):
        values = _decoded_png(path, "rgb")
        return None if values is None else torch.from_numpy(values)
    decode = jpeg_decoder() if path.lower().endswith((".jpg", ".jpeg")) else None
    if decode is None:
        return None
    try:
        pixels = decode(torch.from_numpy(np.fromfile(path, dtype=np.uint8)))
    except (OSError, RuntimeError):
        return None
    channels, height, width = pixels.shape
    if channels not in (1, 3) or _is_too_large(height, width):
        return None
    return pixels.expand(3, height, width).permute(1, 2, 0).contiguous()  # colours are so already


def quickly_decoded_classes(path: str) -> NDArray[np.uint8] | None:
    """Return a mask's values, uint8 [H, W], or None for a file that Pillow has to read or to refuse."""
    values = _decoded_png(path, "mono")
    return None if values is None else values[..., 0]


def _decoded_png(path: str, mode: str) -> NDArray[np.uint8] | None:
    """Return the values of a PNG file of 8 bits, [H, W, 3] (``"rgb"``) or [H, W, 1] (``"mono"``)."""
    decode = png_decoder() if path.lower().endswith(".png") else None
    if decode is None:
        return None
    try:
        data = Path(path).read_bytes()
        *start, width, height, bits, colours, interlaced = _PNG_HEADER.unpack_from(data)
    except (OSError, struct.error):
        return None
    usable = tuple(start) == _PNG_START and bits == 8 and colours in _COLOUR_TYPES[mode] and not interlaced
    if not usable or _is_too_large(height, width) or not _is_whole_png(data):
        return None
    try:
        return decode(data, (height, width), mode)
    except Exception:  # the package raises no narrower class
        return None


def _is_whole_png(data: bytes) -> bool:
    """Whether a PNG file's chunks reach to its end, and those without pixels have their checksums.

    Pillow decides on other files. The decoder examines the chunks of pixels itself.
    """
    at = len(_PNG_START[0])
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if kind == b"IEND":
            return True
        if end + 4 > len(data):
            return False
        if kind != b"IDAT" and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        at = end + 4
    return False


def _is_too_large(height: int, width: int) -> bool:
    """Whether Pillow warns about the size of a picture, or refuses it."""
    largest = Image.MAX_IMAGE_PIXELS
    return largest is not None and height * width > largest


@functools.cache
def jpeg_decoder() -> JPEGDecoder | None:
    """Return torchvision's operator for JPEG, which is quicker than Pillow, or None where it is not to be used.

    It is used where torchvision is installed, and it decodes trial pictures to the very bytes of Pillow: both have
    libjpeg-turbo, in versions of their own. Of torchvision the operators' library alone is loaded, as importing the
    package takes a second. It maps uint8 [P], a file's bytes, to [C, H, W] with the file's channels. Its operator for
    PNG is not used, because it ends the process at a damaged file.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0])
    try:
        for library in (one for one in folder.glob("image*") if one.suffix in (".so", ".pyd")):
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        decode = functools.partial(torch.ops.image.decode_jpeg, mode=0)
        for data, expected in _trial_files(_trial_jpegs()):
            decoded = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            if not torch.equal(decoded, torch.from_numpy(expected).permute(2, 0, 1)):
                return None
    except Exception:  # a library that does not fit this torch raises OSError, a missing operator AttributeError
        return None
    return decode


@functools.cache
def png_decoder() -> PNGDecoder | None:
    """Return kornia-rs' function for PNG, which is quicker than Pillow, or None where it is not to be used.

    It is used where kornia-rs is installed, and it decodes trial pictures to the values of Pillow. It maps a file's
    bytes, (H, W) and ``"rgb"`` or ``"mono"`` to [H, W, 3] or [H, W, 1], and raises for a file of another kind and for
    one that is damaged.
    """
    try:
        decode: PNGDecoder = importlib.import_module("kornia_rs").io.decode_image_png_u8
        for data, expected in _trial_files(_trial_pngs()):
            decoded = decode(data, expected.shape[:2], "mono" if expected.shape[2] == 1 else "rgb")
            if not isinstance(decoded, np.ndarray) or not np.array_equal(decoded, expected):
                return None
    except Exception:  # not installed, or of a version with other functions
        return None
    return decode


Trial = tuple[Image.Image, dict[str, Any]]  # a picture, and how it is saved


def _trial_picture() -> Image.Image:
    y, x = np.mgrid[:37, :53]
    return Image.fromarray(np.stack([(x * k + y * (7 - k) + x * y // 3) % 256 for k in (2, 3, 5)], 2).astype(np.uint8))


def _trial_jpegs() -> Iterator[Trial]:
    colours = _trial_picture()
    yield from ((image, {"format": "jpeg"}) for image in (colours, colours.convert("L")))
    options: list[dict[str, Any]] = [{"subsampling": name} for name in ("4:4:4", "4:2:2", "4:2:0")]
    options += [{"progressive": True, "quality": 95}, {"keep_rgb": True}]
    yield from ((colours, {"format": "jpeg", **how}) for how in options)


def _trial_pngs() -> Iterator[Trial]:
    colours = _trial_picture()
    for image, transparent in ((colours, (3, 4, 5)), (colours.convert("L"), 3), (colours.convert("P"), 3)):
        yield from ((image, {"format": "png", **how}) for how in ({}, {"transparency": transparent}))


def _trial_files(trials: Iterator[Trial]) -> Iterator[tuple[bytes, NDArray[np.uint8]]]:
    """Yield the bytes of small files, and their values [H, W, C] as Pillow decodes them."""
    for image, options in trials:
        file = io.BytesIO()
        image.save(file, **options)
        with Image.open(file) as there:
            decoded = np.array(there)
        yield file.getvalue(), decoded.reshape(*decoded.shape[:2], -1)
