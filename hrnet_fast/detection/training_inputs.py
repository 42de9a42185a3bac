"""Inputs of detectors in training: random size and mirroring of a batch and its targets, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hrnet_fast.checks import check_number
from hrnet_fast.datasets import ColorAugmentation, DetectionBatch, resized_parts
from hrnet_fast.datasets.packed_images import PackedImages, constant
from hrnet_fast.detection.detector_config import PictureConfig
from hrnet_fast.detection.pictures import batch_size, fitted_size, scaled_meta
from hrnet_fast.detection.results import ImageMeta, Target
from hrnet_fast.errors import InputError, shown


@dataclass(frozen=True)
class DetectionInputs:
    """What a detector is trained on.

    Attributes:
        images: float32 [N, 3, H, W], normalised, padded right and below.
        targets: objects of each picture, in pixels of `images`.
        metas: sizes of each picture.
    """

    images: Tensor
    targets: list[Target]
    metas: list[ImageMeta]


@dataclass(frozen=True)
class DetectionScaling:
    """Makes the inputs of a detector from a :class:`~hrnet_fast.datasets.DetectionBatch`, on its device.

    Nothing here waits for the device. The defaults are those of mmdetection's ``coco_detection.py``.

    Attributes:
        picture: size of a picture in evaluation, order and statistics of its channels, and the batch's padding.
        scales: (long side, short side) in training; () takes those of `picture`.
        sampling: ``"list"`` draws one of `scales` (``RandomChoiceResize``); ``"range"`` draws each side from whole
            numbers between those of two `scales` (``RandomResize``). The larger number is that of the long side.
        flip_probability: share of pictures that are mirrored.
        colors: random colours; None leaves them.
    """

    picture: PictureConfig = field(default_factory=PictureConfig)
    scales: tuple[tuple[int, int], ...] = ()
    sampling: str = "list"
    flip_probability: float = 0.5
    colors: ColorAugmentation | None = None

    def __post_init__(self) -> None:
        what = "DetectionScaling"
        if not isinstance(self.picture, PictureConfig):
            raise InputError(f"{what}: picture={shown(self.picture)}; accepted is a PictureConfig.")
        if self.sampling not in ("list", "range"):
            raise InputError(f"{what}: sampling={shown(self.sampling)}; accepted are 'list' and 'range'.")
        if any(len(scale) != 2 or min(scale) < 1 for scale in self.scales):
            raise InputError(f"{what}: scales={shown(self.scales)}; accepted are pairs (long side, short side).")
        if self.sampling == "range" and len(self.scales) != 2:
            raise InputError(f"{what}: {len(self.scales)} scales with sampling='range'; accepted are two.")
        check_number(what, "flip_probability", self.flip_probability)
        if not 0 <= self.flip_probability <= 1:
            raise InputError(f"{what}: flip_probability={self.flip_probability}; accepted are numbers from 0 to 1.")
        if not isinstance(self.colors, (ColorAugmentation, type(None))):
            raise InputError(f"{what}: colors={shown(self.colors)}; accepted is a ColorAugmentation or None.")

    def __call__(self, batch: DetectionBatch, generator: torch.Generator) -> DetectionInputs:
        """Return scaled and mirrored pictures with their targets.

        Args:
            batch: of :func:`~hrnet_fast.datasets.collate_detection`.
            generator: of a CPU. It gives 3 numbers for each picture, and those of `colors`.
        """
        metas, flips = self._draw(batch.sizes, generator)
        size = batch_size(metas)
        scaled = constant([side for meta in metas for side in meta.size], batch.images.sizes, torch.int64).view(-1, 2)
        mirrored = constant(flips, scaled, torch.bool)
        images = resized_parts(batch.images, scaled, torch.zeros_like(scaled), size, mirrored)
        pixels = images.float() if self.colors is None else self.colors(images, generator) * 255
        inside = _inside(scaled, size)
        return DetectionInputs(
            torch.where(inside[:, None], self._normalized(pixels), 0), self._targets(batch, metas, flips, size), metas
        )

    def _draw(self, sizes: Sequence[tuple[int, int]], generator: torch.Generator) -> tuple[list[ImageMeta], list[bool]]:
        """Return the size of each picture, and whether it is mirrored."""
        scales = self.scales or ((self.picture.long_side, self.picture.short_side),)
        metas, flips = [], []
        for (first, second, flip), size in zip(
            torch.rand(len(sizes), 3, generator=generator, dtype=torch.float64).tolist(), sizes, strict=True
        ):
            if self.sampling == "list":
                long_side, short_side = scales[int(first * len(scales))]
            else:
                long_side, short_side = (
                    min(ends) + int(chance * (abs(ends[1] - ends[0]) + 1))
                    for chance, ends in zip((first, second), zip(*scales, strict=True), strict=True)
                )
            metas.append(scaled_meta(size, fitted_size(size, long_side, short_side), self.picture.divisor))
            flips.append(flip < self.flip_probability)
        return metas, flips

    def _normalized(self, pixels: Tensor) -> Tensor:
        picture = self.picture
        if picture.channel_order == "bgr":
            pixels = pixels.flip(1)
        mean, std = (constant(values, pixels).view(1, 3, 1, 1) for values in (picture.mean, picture.std))
        return (pixels - mean) / std

    def _targets(
        self, batch: DetectionBatch, metas: Sequence[ImageMeta], flips: Sequence[bool], size: tuple[int, int]
    ) -> list[Target]:
        boxes, ignored = (
            [
                _moved(part, meta, flip)
                for part, meta, flip in zip(torch.split(all_of_them, counts), metas, flips, strict=True)
            ]
            for all_of_them, counts in (
                (batch.boxes, list(batch.counts)),
                (batch.ignored, list(batch.ignored_counts)),
            )
        )
        objects = [i for i, count in enumerate(batch.counts) for _ in range(count)]
        masks: Sequence[Tensor | None] = [None] * len(metas)
        if batch.masks is not None:
            masks = torch.split(_resized_maps(batch.masks, objects, metas, flips, size), list(batch.counts))
        elif not objects:  # pictures without objects have masks of none
            masks = [batch.labels.new_zeros(0, *size, dtype=torch.uint8)] * len(metas)
        semantic: Sequence[Tensor | None] = [None] * len(metas)
        if batch.semantic is not None:
            semantic = list(_resized_maps(batch.semantic, list(range(len(metas))), metas, flips, size))
        labels = torch.split(batch.labels, list(batch.counts))
        return [Target(*parts) for parts in zip(boxes, labels, masks, ignored, semantic, strict=True)]


def _moved(boxes: Tensor, meta: ImageMeta, flip: bool) -> Tensor:
    """Return boxes of a picture [M, 4] in pixels of the network input."""
    width = meta.size[1]
    x1, y1, x2, y2 = (boxes * constant((*meta.scale, *meta.scale), boxes)).unbind(1)
    if flip:
        x1, x2 = width - x2, width - x1
    return torch.stack(
        [x1.clamp(0, width), y1.clamp(0, meta.size[0]), x2.clamp(0, width), y2.clamp(0, meta.size[0])], 1
    )


def _resized_maps(
    maps: PackedImages, owners: Sequence[int], metas: Sequence[ImageMeta], flips: Sequence[bool], size: tuple[int, int]
) -> Tensor:
    """Return maps of classes as their pictures are scaled and then mirrored, uint8 [T, H, W].

    The nearest pixels of a mirrored map are others than those of a map that is mirrored after its scaling, as in
    mmdetection, where ``Resize`` comes before ``RandomFlip``.

    Args:
        maps: T maps.
        owners: T indices of their pictures.
        metas, flips: of each picture.
        size: (H, W) of the batch.
    """
    scaled = constant([side for i in owners for side in metas[i].size], maps.sizes, torch.int64).view(-1, 2)
    mirrored = constant([flips[i] for i in owners], scaled, torch.bool)
    # A mirrored part ends where the map does, so it begins as many columns before the map as the batch is wider.
    corners = [corner for i in owners for corner in (0, metas[i].size[1] - size[1] if flips[i] else 0)]
    first = constant(corners, maps.sizes, torch.int64).view(-1, 2)
    return resized_parts(maps, scaled, first, size, nearest=True, mirrored=mirrored)[:, 0]


def _inside(scaled: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which pixels of a batch of `size` are a picture's and not padding, [N, H, W]."""
    rows, columns = (torch.arange(side, device=scaled.device) for side in size)
    return (rows[None, :, None] < scaled[:, 0, None, None]) & (columns[None, None, :] < scaled[:, 1, None, None])
