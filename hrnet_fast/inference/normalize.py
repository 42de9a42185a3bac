"""Normalisation of images of bytes to a network's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hrnet_fast.checks import check_numbers
from hrnet_fast.errors import InputError, shown


@dataclass(frozen=True)
class Normalize:
    """Images of bytes [N, H, W, C] become (x / 255 - mean) / std, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def scale(self) -> tuple[float, ...]:
        return tuple(1.0 / (255.0 * s) for s in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        return tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))


def checked_normalize(given: Any) -> Normalize | None:
    """Return `normalize` of :func:`optimize_for_inference` as :class:`Normalize`, or None.

    Raises:
        InputError: it is no pair (mean, std) of one number for each channel, or a deviation is not positive.
    """
    if given is None:
        return None
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        raise InputError(f"optimize_for_inference: normalize={shown(given)}; accepted is a pair, (mean, std).")
    mean, std = (
        check_numbers("optimize_for_inference", f"normalize's {name}", values)
        for name, values in zip(("mean", "std"), given, strict=True)
    )
    if len(mean) != len(std) or min(std) <= 0:
        raise InputError(
            f"optimize_for_inference: normalize=({list(mean)}, {list(std)}); give one mean and one positive standard "
            "deviation per channel, of values in 0 .. 1."
        )
    return Normalize(tuple(map(float, mean)), tuple(map(float, std)))
