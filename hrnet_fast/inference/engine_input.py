"""What an engine takes: floating maps, or images of bytes and their normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checks import check_numbers
from hrnet_fast.errors import InputError, shown
from hrnet_fast.inference.planning.tracer import InputShape


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


def network_shape(x: Any, device: torch.device, images: Normalize | None) -> InputShape:
    """Return the shape [N, C, H, W] of what a network gets for an engine's input, or the shapes of several inputs.

    Args:
        x: a call's input.
        device: the engine's.
        images: of an engine for images of bytes.

    Raises:
        InputError: the type, dtype, rank or device is not what this engine takes.
    """
    wanted = "bytes [N, H, W, C]" if images else "floating [N, C, H, W]"
    if isinstance(x, tuple) and x and not images:
        return tuple(network_shape(part, device, images) for part in x)
    if not isinstance(x, Tensor):
        raise InputError(f"Engine: {type(x).__name__} given; accepted is a tensor, {wanted}.")
    if x.device != device:
        raise InputError(f"Engine: input on {x.device}; this engine runs on {device}: move it there.")
    bytewise = x.dtype == torch.uint8
    if x.dim() != 4 or bytewise != bool(images) or not (bytewise or x.is_floating_point()):
        hint = " (add the batch dimension with x[None])" if x.dim() == 3 else ""
        raise InputError(f"Engine: {x.dtype} {list(x.shape)} given; accepted is {wanted}{hint}.")
    if not images:
        return tuple(x.shape)
    if x.shape[3] != len(images.mean):
        raise InputError(f"Engine: images {list(x.shape)} given; the last dimension is {len(images.mean)}.")
    return (x.shape[0], x.shape[3], x.shape[1], x.shape[2])
