"""The decoding methods by name, and the checks that decoding and encoding share.

==========  ===========================================================  ==================================
method      code that trains with it                                     input pixel of heatmap pixel ``p``
==========  ===========================================================  ==================================
``msra``    authors' pose ``lib/core/inference.py``; mmpose MSRAHeatmap  ``p * W / w``
``dark``    mmpose MSRAHeatmap with ``unbiased=True``                    ``p * W / w``
``udp``     mmpose UDPHeatmap (gaussian)                                 ``p * (W - 1) / (w - 1)``
``face``    authors' face ``lib/core/evaluation.py``                     ``(p + 0.5) * W / w``
==========  ===========================================================  ==================================
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch

from hrnet_fast.errors import InputError, shown

METHODS = ("msra", "dark", "udp", "face")
# Instead of a method, if the maps are no heatmaps (segmentation).
NO_HEATMAPS = "none"
# Heads whose maps may be heatmaps, and the method of the first code base with that head. V1h and V2 are also heads for
# segmentation.
METHOD_OF_HEAD: dict[str, str | None] = {"v1": "msra", "v1h": None, "v2": None, "face": "face"}


def check_method(what: str, method: str) -> None:
    """Raise :class:`InputError` unless `method` is one of :data:`METHODS`."""
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"{what}: {shown(method)} is not one of {', '.join(METHODS)}.")


def named_method(network: object) -> str | None:
    """Return the attribute ``keypoints`` of a network, of a wrapped network (DataParallel) or of an engine, or None.

    Raises:
        InputError: the attribute is no known method.
    """
    found = getattr(network, "keypoints", getattr(getattr(network, "module", None), "keypoints", None))
    if isinstance(found, str) and found != NO_HEATMAPS:
        check_method("keypoints", found)
    return found if isinstance(found, str) else None


def check_size(what: str, name: str, size: Sequence[int], least: int = 1) -> tuple[int, int]:
    """Return `size` as (height, width).

    Raises:
        InputError: `size` is something other than two integers of at least `least`.
    """
    try:
        height, width = (int(side) for side in size)
        if [height, width] != list(size) or min(height, width) < least or any(isinstance(s, bool) for s in size):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{what}: {name}={shown(size)} given; accepted is (height, width), whole numbers of at least {least}."
        ) from None
    return height, width


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on devices that lack it."""
    return torch.float32 if device.type == "mps" else torch.float64


def as_float32(value: float) -> float:
    """Return `value` rounded to float32, the dtype of mmpose's scale factors."""
    return float(struct.unpack("f", struct.pack("f", value))[0])
