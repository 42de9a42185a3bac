"""Names of old numpy and scipy that the authors' repositories use and newer releases lack: ``launch --legacy``.

numpy 1.24 and 1.25 removed aliases of Python's types and of ``math``; scipy 1.3 removed ``imresize`` and ``imrotate``.
Each is supplied when it is first asked for, and told then.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import math
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from hrnet_fast.errors import InputError, shown

ALIASES: dict[str, type | ModuleType] = {
    "bool": bool, "complex": complex, "float": float, "int": int, "long": int, "math": math, "object": object,
    "str": str, "unicode": str,
}  # fmt: skip
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
}


def supply(say: Callable[[str], None]) -> Callable[[], None]:
    """Supply the names that are absent, telling each with `say` at its first use; return what takes them back."""
    original = np.__getattr__
    added: list[str] = []

    def absent(name: str) -> Any:
        if name not in ALIASES:
            return original(name)
        say(f"numpy.{name} is supplied: it is Python's {ALIASES[name].__name__}")
        setattr(np, name, ALIASES[name])
        added.append(name)
        return ALIASES[name]

    finder = _MiscFinder(say)
    np.__getattr__ = absent  # type: ignore[method-assign]
    sys.meta_path.insert(0, finder)
    before = sys.modules.pop("scipy.misc", None)

    def take_back() -> None:
        np.__getattr__ = original  # type: ignore[method-assign]
        for name in added:
            delattr(np, name)
        sys.meta_path.remove(finder)
        sys.modules.pop("scipy.misc", None)
        if before is not None:
            sys.modules["scipy.misc"] = before

    return take_back


class _MiscFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports ``scipy.misc``, which is empty or absent by now."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == "scipy.misc" else None

    def exec_module(self, module: ModuleType) -> None:
        self._say("scipy.misc is supplied: it has imresize and imrotate")
        vars(module).update(imresize=imresize, imrotate=imrotate)


def imresize(arr: Any, size: Any, interp: str = "bilinear", mode: None = None) -> np.ndarray[Any, Any]:
    """Resize an image as ``scipy.misc.imresize`` did (scipy 1.2): through Pillow, in 8 bits.

    Values that are not 8-bit are stretched first, so that their range becomes 0 to 255.

    Args:
        arr: [H, W], or [H, W, C] with 3 or 4 channels.
        size: a percentage (an integer), a factor (a float), or (height, width).
        interp: ``"nearest"``, ``"lanczos"``, ``"bilinear"``, ``"bicubic"`` or ``"cubic"``.
        mode: must be None.

    Returns:
        uint8, of the new height and width.

    Raises:
        InputError: an array, `interp` or `mode` of another kind.
    """
    image = _image("imresize", arr, interp, mode)
    if isinstance(size, (int, float, np.integer, np.floating)):
        factor = size / 100.0 if isinstance(size, (int, np.integer)) else size
        new = (int(image.width * factor), int(image.height * factor))
    else:
        new = (int(size[1]), int(size[0]))
    return np.array(image.resize(new, resample=_FILTERS[interp]))


def imrotate(arr: Any, angle: float, interp: str = "bilinear") -> np.ndarray[Any, Any]:
    """Rotate an image about its centre as ``scipy.misc.imrotate`` did (scipy 1.2): through Pillow, in 8 bits.

    Args:
        arr: as :func:`imresize` takes it, with its stretching.
        angle: degrees, counter-clockwise.
        interp: ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"cubic"``.

    Returns:
        uint8, of the same shape.

    Raises:
        InputError: an array or `interp` of another kind.
    """
    if interp == "lanczos":
        raise InputError("imrotate: interp='lanczos'; Pillow rotates with nearest, bilinear and bicubic.")
    return np.array(_image("imrotate", arr, interp).rotate(angle, resample=_FILTERS[interp]))


def _image(function: str, arr: Any, interp: str, mode: Any = None) -> Image.Image:
    array = np.asarray(arr)
    if interp not in _FILTERS or mode is not None:
        given = f"interp={shown(interp)}, mode={shown(mode)}"
        raise InputError(f"{function}: {given}; accepted are interp of {', '.join(_FILTERS)}, and mode=None.")
    if np.iscomplexobj(array) or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InputError(f"{function}: an array of shape {array.shape}; accepted are [H, W], [H, W, 3] and [H, W, 4].")
    return Image.fromarray(_to_bytes(array))


def _to_bytes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Stretch the values to 0 ... 255 and round half up; what is 8-bit stays."""
    if array.dtype == np.uint8:
        return array
    low, high = float(array.min()), float(array.max())
    stretched = (array - low) * (255.0 / ((high - low) or 1.0))
    return (stretched.clip(0, 255) + 0.5).astype(np.uint8)  # type: ignore[no-any-return]
