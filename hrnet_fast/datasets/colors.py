"""Colours of batches: normalisation, and random brightness, contrast, saturation and hue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hrnet_fast.checks import check_integer, check_number, check_numbers, check_tensor
from hrnet_fast.datasets.image_warps import compiled_crops
from hrnet_fast.datasets.packed_images import constant, random_numbers
from hrnet_fast.errors import InputError

# ImageNet statistics of RGB in [0, 1], with which every upstream trains.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601


def normalize(
    images: Tensor,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Return bytes [N, C, H, W] as float32, (x / 255 - mean) / std, computed in this order as every upstream does.

    Args:
        images: uint8, or float in [0, 1] from :class:`ColorAugmentation`.
        mean: of each channel.
        std: of each channel.
        memory_format: of the result; None keeps that of `images`.

    Raises:
        InputError: the images have another shape or type, or other numbers of channels.
    """
    check_tensor("normalize", "images", images)
    centre, spread = check_numbers("normalize", "mean", mean), check_numbers("normalize", "std", std)
    if images.dim() != 4 or not len(centre) == len(spread) == images.shape[1] or 0 in spread:
        raise InputError(
            f"normalize: images {list(images.shape)} with mean {centre} and std {spread}; accepted are [N, C, H, W] "
            "and C numbers each, std not 0."
        )
    if images.dtype == torch.uint8 and images.device.type == "cpu" and images.is_contiguous() and compiled_crops():
        result: Tensor = torch.ops.hrnet_fast.normalize_pictures_cpu(images, centre, spread)
        return result if memory_format is None else result.contiguous(memory_format=memory_format)
    shares = images.float() / 255 if images.dtype == torch.uint8 else images.clone()
    centres, spreads = (constant(v, images).view(1, -1, 1, 1) for v in (centre, spread))
    result = shares.sub_(centres).div_(spreads)
    return result if memory_format is None else result.contiguous(memory_format=memory_format)


def check_statistics(what: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise InputError unless both are three numbers, and the second ones are positive."""
    centre, spread = check_numbers(what, "mean", mean), check_numbers(what, "std", std)
    if len(centre) != 3 or len(spread) != 3 or min(spread) <= 0:
        raise InputError(f"{what}: mean={centre} and std={spread}; accepted are 3 numbers each, std above 0.")


@dataclass(frozen=True)
class ColorAugmentation:
    """Random colours of a batch, in the order of the fields. The authors' code has `brightness_shift` alone.

    Attributes:
        brightness_shift: whole grey levels, from minus to plus that many, are added to half of the pictures (the
            authors' ``RANDOM_BRIGHTNESS``: 10; in their configurations it is off).
        brightness: the picture is multiplied by 1 - brightness to 1 + brightness.
        contrast: likewise the distance from the picture's mean grey.
        saturation: likewise the distance of each pixel from its grey.
        hue: the hue turns by up to that share of the circle, at most 0.5.
        probability: share of the pictures that the four take effect on, as one decision.
    """

    brightness_shift: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        check_integer("ColorAugmentation", "brightness_shift", self.brightness_shift, least=0)
        for field in fields(self)[1:]:
            value, most = getattr(self, field.name), 0.5 if field.name == "hue" else 1.0
            check_number("ColorAugmentation", field.name, value)
            if not 0 <= value <= most:
                raise InputError(f"ColorAugmentation: {field.name}={value}; accepted are numbers from 0 to {most}.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return RGB bytes [N, 3, H, W] as float32 in [0, 1] with other colours, for :func:`normalize`.

        Args:
            images: uint8.
            generator: gives 7 numbers for each picture, whatever the fields are.

        Raises:
            InputError: `images` are no RGB bytes.
        """
        check_tensor("ColorAugmentation", "images", images)
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            given = f"{images.dtype} {list(images.shape)}"
            raise InputError(f"ColorAugmentation: images {given} given; accepted are uint8 [N, 3, H, W].")
        numbers = random_numbers(generator, images.shape[0], 7, images).float()[:, :, None, None, None]
        chance, spread = numbers[:, :2], 2 * numbers[:, 2:] - 1
        levels = images.float()
        if self.brightness_shift:
            shift = torch.floor((spread[:, 0] + 1) / 2 * (2 * self.brightness_shift + 1)) - self.brightness_shift
            levels = (levels + torch.where(chance[:, 0] < 0.5, 0.0, shift)).clamp(0, 255)
        pixels = levels / 255
        spread = torch.where(chance[:, 1:2] < self.probability, spread, 0.0)
        if self.brightness:
            pixels = (pixels * (1 + spread[:, 1] * self.brightness)).clamp(0, 1)
        if self.contrast:
            pixels = _away_from(_grey(pixels).mean((2, 3), keepdim=True), pixels, 1 + spread[:, 2] * self.contrast)
        if self.saturation:
            pixels = _away_from(_grey(pixels), pixels, 1 + spread[:, 3] * self.saturation)
        return _turn_hue(pixels, spread[:, 4] * self.hue) if self.hue else pixels


def _grey(pixels: Tensor) -> Tensor:
    weights = constant(_GREY, pixels).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True)


def _away_from(anchor: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    return (anchor + (pixels - anchor) * factor).clamp(0, 1)


def _turn_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Return RGB in [0, 1] with the hue of HSV turned by a share [N, 1, 1, 1] of the circle."""
    value, least = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    chroma = value - least
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    unit = torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(
        value == red,
        (green - blue) / unit,
        torch.where(value == green, 2 + (blue - red) / unit, 4 + (red - green) / unit),
    )
    sixths = sixths + 6 * turn
    # Channel k of a colour of hue h (in sixths) is value - chroma * max(0, min(r, 4 - r, 1)), r = (n_k + h) mod 6.
    offsets = constant((5.0, 3.0, 1.0), pixels).view(1, 3, 1, 1)
    place = torch.remainder(offsets + sixths, 6)
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)
