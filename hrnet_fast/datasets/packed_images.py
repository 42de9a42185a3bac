"""Pictures of different sizes in one tensor of bytes, so that a batch is one transfer and one gather."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from hrnet_fast.datasets.samples import SkippedSample
from hrnet_fast.errors import InputError
from hrnet_fast.keypoints.methods import widest_float

Batch = TypeVar("Batch", bound="MovedTogether")
Sample = TypeVar("Sample")


def constant(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers on the device of `like` without waiting for it: a plain copy to the device does."""
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)


def random_numbers(generator: torch.Generator, count: int, each: int, like: Tensor) -> Tensor:
    """Return numbers in [0, 1), [count, each], float64 (float32 on MPS), on the device of `like` without waiting.

    A CPU's generator gives the same numbers for every device.
    """
    exact = widest_float(generator.device)
    drawn = torch.rand(count, each, generator=generator, device=generator.device, dtype=exact)
    return drawn.to(widest_float(like.device)).to(like.device, non_blocking=True)


def skip_random_numbers(generator: torch.Generator, count: int, each: int) -> None:
    """Leave a generator in the state behind :func:`random_numbers`."""
    random_numbers(generator, count, each, torch.empty(0, device=generator.device))


class MovedTogether:
    """A dataclass whose tensors move to a device, and into pinned memory, together."""

    def _changed(self: Batch, change: Any) -> Batch:
        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, (Tensor, MovedTogether)) else value

        return type(self)(**{f.name: changed(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    def to(self: Batch, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`."""
        return self._changed(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self: Batch) -> Batch:
        """Return the batch in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return self._changed(lambda value: value.pin_memory())


@dataclass(frozen=True)
class PackedImages(MovedTogether):
    """N pictures, or N maps of classes, one after the other.

    Attributes:
        values: the pixels row by row. Of pictures int32 [P], red in the lowest byte, then green and blue: a pixel is
            one load. Of classes uint8 [P]. The first value is what lies outside of a picture.
        starts: int64 [N], the place of each first pixel in `values`.
        sizes: int64 [N, 2] as (height, width).
    """

    values: Tensor
    starts: Tensor
    sizes: Tensor

    def stacked(self) -> Tensor:
        """Return pictures of one size as uint8 [N, 3, H, W], or maps of classes as [N, 1, H, W].

        Raises:
            InputError: the sizes differ.
        """
        sizes = self.sizes.tolist()
        if any(size != sizes[0] for size in sizes):
            raise InputError(f"stacked: pictures of {sorted(map(tuple, sizes))[:4]}; accepted are those of one size.")
        height, width = sizes[0] if sizes else (0, 0)
        return channels_of(self.values[1:].view(len(sizes), height, width)).to(torch.uint8)


@dataclass(frozen=True)
class SeparateImages:
    """N pictures as they were decoded, which nothing has packed.

    Attributes:
        pictures: uint8 [H, W, 3] each, or maps of classes [H, W].
        sizes: int64 [N, 2] as (height, width).
        outside: value of what lies outside of a map.
    """

    pictures: tuple[Tensor, ...]
    sizes: Tensor
    outside: int = 0


@dataclass(frozen=True)
class CroppedImages(MovedTogether):
    """N crops, of which the pictures stayed in the worker.

    Attributes:
        pixels: uint8 [N, 3, h, w], or [N, 1, h, w] of classes.
        sizes: int64 [N, 2] as (height, width) of the pictures.
    """

    pixels: Tensor
    sizes: Tensor


def separate_images(images: Sequence[Tensor], outside: int = 0) -> SeparateImages:
    """Return pictures [H, W, 3], or maps of classes [H, W], with their sizes."""
    return SeparateImages(tuple(images), _sizes_of(images), outside)


def separated(images: PackedImages | SeparateImages) -> SeparateImages:
    """Return packed pictures on a CPU as views of each one."""
    if isinstance(images, SeparateImages):
        return images
    values, parts = images.values, []
    if values.dtype != torch.uint8:
        values = values.view(torch.uint8).view(-1, 4)
    for start, (height, width) in zip(images.starts.tolist(), images.sizes.tolist(), strict=True):
        part = values[start : start + height * width]
        parts.append(part.view(height, width, *part.shape[1:]))
    if images.values.dtype == torch.uint8:
        return SeparateImages(tuple(parts), images.sizes, int(values[0]))
    return SeparateImages(tuple(part[..., :3] for part in parts), images.sizes)


def _sizes_of(images: Sequence[Tensor]) -> Tensor:
    return torch.tensor([image.shape[:2] for image in images], dtype=torch.int64).reshape(-1, 2)


def channels_of(pixels: Tensor) -> Tensor:
    """Return packed pixels [N, ...] as int32 [N, C, ...], of one channel for classes."""
    if pixels.dtype == torch.uint8:
        return pixels.unsqueeze(1).to(torch.int32)
    return torch.stack([pixels & 255, (pixels >> 8) & 255, (pixels >> 16) & 255], dim=1)


def pack_images(images: Sequence[Tensor], outside: int = 0) -> PackedImages:
    """Pack uint8 pictures [H, W, 3], or maps of classes [H, W].

    Args:
        images: all of the one or of the other kind.
        outside: value of what lies outside of a map.
    """
    sizes = _sizes_of(images)
    counts = sizes.prod(1)
    starts = 1 + counts.cumsum(0) - counts
    if images and images[0].dim() == 2:
        border = torch.full((1,), outside, dtype=torch.uint8)
        return PackedImages(torch.cat([border, *(image.flatten() for image in images)]), starts, sizes)
    pixels = torch.zeros(1 + int(counts.sum()), 4, dtype=torch.uint8)
    for image, start, (height, width) in zip(images, starts.tolist(), sizes.tolist(), strict=True):
        pixels[start : start + height * width].view(height, width, 4)[..., :3] = image
    return PackedImages(pixels.view(torch.int32)[:, 0], starts, sizes)


def part_skipped(samples: Iterable[Sample | SkippedSample]) -> tuple[list[Sample], tuple[SkippedSample, ...]]:
    """Return the usable samples, and what stands in the place of the others."""
    kept: list[Sample] = []
    skipped: list[SkippedSample] = []
    for sample in samples:
        if isinstance(sample, SkippedSample):
            skipped.append(sample)
        else:
            kept.append(sample)
    return kept, tuple(skipped)
