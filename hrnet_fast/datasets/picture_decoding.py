"""Decoding of JPEG and PNG files by torchvision's operators, where they give Pillow's pixels."""

from __future__ import annotations

import functools
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Decoder = Callable[[Tensor], Tensor]
_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}


def quickly_decoded(path: str) -> Tensor | None:
    """Return a file's pixels, uint8 RGB [H, W, 3], or None for a file that Pillow has to read or to refuse."""
    kind = _FORMATS.get(os.path.splitext(path)[1].lower(), "")
    decode = quick_decoders().get(kind)
    if decode is None:
        return None
    try:
        data = np.fromfile(path, dtype=np.uint8)
        if kind == "png" and tuple(data[24:26]) not in ((8, 0), (8, 2)):  # bits and colour type: grey or RGB of 8 bits
            return None
        pixels = decode(torch.from_numpy(data))
    except (OSError, RuntimeError):
        return None
    channels, height, width = pixels.shape
    largest = Image.MAX_IMAGE_PIXELS
    if channels not in (1, 3) or (largest is not None and height * width > largest):
        return None
    return pixels.expand(3, height, width).permute(1, 2, 0).contiguous()  # colours are so already


@functools.cache
def quick_decoders() -> Mapping[str, Decoder]:
    """Return torchvision's operators by format, which are quicker than Pillow; of these, those that are to be used.

    One is used where torchvision is installed, and it decodes trial pictures of each kind to the very bytes of Pillow:
    both have the same libraries, in versions of their own. Of torchvision the operators' library alone is loaded, as
    importing the package takes a second. They map uint8 [P], a file's bytes, to [C, H, W] with the file's channels.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return {}
    folder = Path(found.submodule_search_locations[0])
    decoders: dict[str, Decoder] = {}
    try:
        for library in (one for one in folder.glob("image*") if one.suffix in (".so", ".pyd")):
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        for kind in ("jpeg", "png"):
            decode = functools.partial(getattr(torch.ops.image, f"decode_{kind}"), mode=0)
            if all(torch.equal(decode(file), expected) for file, expected in _trial_pictures(kind)):
                decoders[kind] = decode
    except Exception:  # a library that does not fit this torch raises OSError, a missing operator AttributeError
        return decoders
    return decoders


def _trial_pictures(kind: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the bytes of small files, and their pixels [C, H, W] as Pillow decodes them."""
    y, x = np.mgrid[:37, :53]
    pixels = np.stack([(x * k + y * (7 - k) + x * y // 3) % 256 for k in (2, 3, 5)], 2).astype(np.uint8)
    colours = Image.fromarray(pixels)
    files: list[tuple[Image.Image, dict[str, Any]]] = [(colours, {}), (colours.convert("L"), {})]
    if kind == "jpeg":
        files += [(colours, {"subsampling": name}) for name in ("4:4:4", "4:2:2", "4:2:0")]
        files += [(colours, {"progressive": True, "quality": 95}), (colours, {"keep_rgb": True})]
    for image, options in files:
        file = io.BytesIO()
        image.save(file, kind, **options)
        with Image.open(file) as there:
            decoded = np.array(there)
        data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
        yield data, torch.from_numpy(decoded.reshape(*decoded.shape[:2], -1)).permute(2, 0, 1)
