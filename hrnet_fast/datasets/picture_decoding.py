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

Decoder = Callable[[Tensor], Tensor]


def quickly_decoded(path: str) -> Tensor | None:
    """Return a file's pixels, uint8 RGB [H, W, 3], or None for a file that Pillow has to read or to refuse."""
    if not path.lower().endswith((".jpg", ".jpeg")):
        return None
    decode = quick_decoder()
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
    return pixels.expand(3, height, width).permute(1, 2, 0).contiguous()  # colours are so already


@functools.cache
def quick_decoder() -> Decoder | None:
    """Return torchvision's operator for JPEG, which is quicker than Pillow, or None where it is not to be used.

    It is used where torchvision is installed, and it decodes trial pictures to the very bytes of Pillow: both have
    libjpeg-turbo, in versions of their own. Of torchvision the operators' library alone is loaded, as importing the
    package takes a second. It maps uint8 [P], a file's bytes, to [C, H, W] with the file's channels. PNG files are left
    to Pillow, because torchvision's operator for them ends the process at a damaged file.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0])
    try:
        for library in (one for one in folder.glob("image*") if one.suffix in (".so", ".pyd")):
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        decode = functools.partial(torch.ops.image.decode_jpeg, mode=0)
        same = all(torch.equal(decode(file), expected) for file, expected in _trial_pictures())
    except Exception:  # a library that does not fit this torch raises OSError, a missing operator AttributeError
        return None
    return decode if same else None


def _trial_pictures() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the bytes of small JPEG files, and their pixels [C, H, W] as Pillow decodes them."""
    y, x = np.mgrid[:37, :53]
    pixels = np.stack([(x * k + y * (7 - k) + x * y // 3) % 256 for k in (2, 3, 5)], 2).astype(np.uint8)
    colours = Image.fromarray(pixels)
    files: list[tuple[Image.Image, dict[str, Any]]] = [(colours, {}), (colours.convert("L"), {})]
    files += [(colours, {"subsampling": name}) for name in ("4:4:4", "4:2:2", "4:2:0")]
    files += [(colours, {"progressive": True, "quality": 95}), (colours, {"keep_rgb": True})]
    for image, options in files:
        file = io.BytesIO()
        image.save(file, "jpeg", **options)
        with Image.open(file) as there:
            decoded = np.array(there)
        data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        yield data, torch.from_numpy(decoded.reshape(*decoded.shape[:2], -1)).permute(2, 0, 1)
