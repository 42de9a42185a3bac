"""Decoding of JPEG files by torchvision's operator, where it gives Pillow's pixels."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def decoded_jpeg(path: str) -> Tensor | None:
    """Return a JPEG file's pixels, uint8 RGB [H, W, 3], or None for a file that Pillow has to read or to refuse."""
    decode = jpeg_operator() if path.lower().endswith((".jpg", ".jpeg")) else None
    if decode is None:
        return None
    try:
        pixels = decode(torch.from_numpy(np.fromfile(path, dtype=np.uint8)))
    except (OSError, RuntimeError):
        return None
    channels, height, width = pixels.shape
    largest = Image.MAX_IMAGE_PIXELS
    if channels not in (1, 3) or (largest is not None and height * width > largest):
        return None
    return pixels.expand(3, height, width).permute(1, 2, 0)


@functools.cache
def jpeg_operator() -> Callable[[Tensor], Tensor] | None:
    """Return torchvision's operator, which is quicker than Pillow, or None where it is not to be used.

    It is used where torchvision is installed, and decodes trial pictures of each kind to the very bytes of Pillow: both
    have libjpeg-turbo, in versions of their own. Of torchvision the operator's library alone is loaded, as importing
    the package takes a second. It maps uint8 [P], a file's bytes, to uint8 [C, H, W] with the file's channels.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return None
    try:
        folder = Path(found.submodule_search_locations[0])
        for library in (one for one in folder.glob("image*") if one.suffix in (".so", ".pyd")):
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        decode = functools.partial(torch.ops.image.decode_jpeg, mode=0)
        equal = all(torch.equal(decode(file), expected) for file, expected in _trial_pictures())
    except Exception:  # a library that does not fit this torch raises OSError, a missing operator AttributeError
        return None
    return decode if equal else None


def _trial_pictures() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the bytes of small JPEG files, and their pixels [C, H, W] as Pillow decodes them."""
    y, x = np.mgrid[:37, :53]
    pixels = np.stack([(x * k + y * (7 - k) + x * y // 3) % 256 for k in (2, 3, 5)], 2).astype(np.uint8)
    colours = Image.fromarray(pixels)
    kinds: list[tuple[Image.Image, dict[str, Any]]] = [
        *((colours, {"subsampling": kind}) for kind in ("4:4:4", "4:2:2", "4:2:0")),
        (colours, {"progressive": True, "quality": 95}),
        (colours, {"keep_rgb": True}),
        (colours.convert("L"), {}),
    ]
    for image, options in kinds:
        file = io.BytesIO()
        image.save(file, "JPEG", **options)
        with Image.open(file) as there:
            decoded = np.array(there)
        data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        yield data, torch.from_numpy(decoded.reshape(*decoded.shape[:2], -1)).permute(2, 0, 1)
