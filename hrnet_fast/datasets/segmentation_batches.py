"""Batches of segmentation: collation; random scale, crop, padding and flips, on the device or in the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checks import check_bool, check_integer, check_number, check_numbers
from hrnet_fast.datasets.colors import MEAN, STD, ColorAugmentation, check_statistics, normalize
from hrnet_fast.datasets.image_warps import resized_parts
from hrnet_fast.datasets.packed_images import (
    CroppedImages,
    MovedTogether,
    PackedImages,
    constant,
    pack_images,
    part_skipped,
    random_numbers,
    separate_images,
    skip_random_numbers,
)
from hrnet_fast.datasets.samples import SegmentationSample, SkippedSample
from hrnet_fast.errors import InputError, shown
from hrnet_fast.keypoints import mirror_order
from hrnet_fast.keypoints.methods import check_size, widest_float

_NUMBERS = 4  # that a picture takes from the generator


@dataclass(frozen=True)
class SegmentationBatch(MovedTogether):
    """N samples; see :class:`~hrnet_fast.datasets.SegmentationSample`.

    Attributes:
        images: the pictures, or their crops (:meth:`SegmentationCrops.collate`).
        labels: the classes, outside of a picture the ignored label; None without masks.
        paths, rows: of each sample.
        skipped: what was left out of the batch.
    """

    images: PackedImages | CroppedImages
    labels: PackedImages | CroppedImages | None
    paths: tuple[str, ...]
    rows: tuple[str, ...]
    skipped: tuple[SkippedSample, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class CollateSegmentation:
    """Makes a :class:`SegmentationBatch`, for ``DataLoader(collate_fn=...)``; skipped samples are listed apart.

    Attributes:
        ignore_label: the label outside of a picture, from 0 to 255.
    """

    ignore_label: int = 255

    def __call__(self, samples: Sequence[SegmentationSample | SkippedSample]) -> SegmentationBatch:
        """Return the batch.

        Raises:
            InputError: some pictures have a mask and some have none.
        """
        kept, skipped = part_skipped(samples)
        labels = _labels_of(kept)
        images = pack_images([s.image for s in kept])
        return _batch_of(kept, skipped, images, None if labels is None else pack_images(labels, self.ignore_label))


def _labels_of(kept: Sequence[SegmentationSample]) -> list[Tensor] | None:
    """Return the masks of all samples; None where none has one."""
    labels = [s.labels for s in kept if s.labels is not None]
    if len(labels) not in (0, len(kept)):
        raise InputError(f"CollateSegmentation: {len(labels)} masks for {len(kept)} pictures; give all or none.")
    return labels if labels or not kept else None


def _batch_of(
    kept: Sequence[SegmentationSample], skipped: tuple[SkippedSample, ...], images: Any, labels: Any
) -> SegmentationBatch:
    return SegmentationBatch(images, labels, tuple(s.path for s in kept), tuple(s.row for s in kept), skipped=skipped)


@dataclass(frozen=True)
class SegmentationInputs:
    """What a step needs, on the batch's device.

    Attributes:
        images: float32 [N, 3, H, W], normalised.
        labels: int64 [N, H, W].
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class SegmentationCrops:
    """Makes random crops from a :class:`SegmentationBatch`, on its device, without synchronisation
    (but see `resize_shorter`).

    The defaults are those of the authors' Cityscapes configurations (``lib/datasets/base_dataset.py``). Their
    PASCAL-Context: crop_size (480, 480), base_size 520; their LIP: crop_size (473, 473), base_size 473, scales
    (0.5, 1.6), stretch and flip_first, swapped_classes of the data set.

    Attributes:
        crop_size: (H, W).
        base_size: length in pixels of one of the picture's sides at scale 1.
        scales: the smallest and the largest scale.
        scale_step: distance of the scales; 0 means any number between the two.
        stretch: the picture is resized to `crop_size` before it is scaled, as the authors do with LIP.
        resize_shorter: length in pixels to which the shorter side is resized before the picture is scaled, as in the
            authors' branch ``HRNet-OCR`` with PASCAL-Context, ADE20K and COCO-Stuff; None leaves pictures as they are.
            On a CUDA device the host then waits for their sizes, unless workers crop.
        flip_probability: share of pictures that are mirrored.
        flip_first: mirroring comes before padding, so that the padding is at the right in mirrored pictures too.
        swapped_classes: pairs of classes that mirroring swaps.
        colors: random colours; None leaves them.
        mean, std: of the normalisation. Padding is 0 before it, the ignored label in the labels.
        base_side: which side `base_size` is of: ``"longer"``, or ``"shorter"`` as in mmsegmentation's ADE20K.
    """

    crop_size: tuple[int, int] = (512, 1024)
    base_size: int = 2048
    scales: tuple[float, float] = (0.5, 2.1)
    scale_step: float = 0.1
    stretch: bool = False
    resize_shorter: int | None = None
    flip_probability: float = 0.5
    flip_first: bool = False
    swapped_classes: Sequence[tuple[int, int]] = ()
    colors: ColorAugmentation | None = None
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD
    base_side: str = "longer"

    def __post_init__(self) -> None:
        what = "SegmentationCrops"
        check_size(what, "crop_size", self.crop_size)
        check_integer(what, "base_size", self.base_size)
        check_bool(what, stretch=self.stretch, flip_first=self.flip_first)
        if self.resize_shorter is not None:
            check_integer(what, "resize_shorter", self.resize_shorter)
            if self.stretch:
                raise InputError(f"{what}: resize_shorter={self.resize_shorter} beside stretch=True; give one of them.")
        if self.base_side not in ("longer", "shorter"):
            raise InputError(f"{what}: base_side={shown(self.base_side)}; accepted are 'longer' and 'shorter'.")
        check_statistics(what, self.mean, self.std)
        scales = check_numbers(what, "scales", self.scales)
        for name in ("scale_step", "flip_probability"):
            check_number(what, name, getattr(self, name))
        if len(scales) != 2 or not 0 < scales[0] <= scales[1] or self.scale_step < 0:
            raise InputError(
                f"{what}: scales={self.scales} and scale_step={self.scale_step}; accepted are (smallest, largest) "
                "above 0 and a step of 0 or more."
            )
        if not 0 <= self.flip_probability <= 1:
            raise InputError(f"{what}: flip_probability={self.flip_probability}; accepted are numbers from 0 to 1.")
        if not isinstance(self.colors, (ColorAugmentation, type(None))):
            raise InputError(f"{what}: colors={shown(self.colors)}; accepted is a ColorAugmentation or None.")
        mirror_order(self.swapped_classes, 256)

    def __call__(self, batch: SegmentationBatch, generator: torch.Generator) -> SegmentationInputs:
        """Return crops and their labels.

        Args:
            batch: with labels.
            generator: gives 4 numbers for each picture, and those of `colors`.

        Raises:
            InputError: the batch has no labels.
        """
        if batch.labels is None:
            raise InputError("SegmentationCrops: pictures without masks given; training needs masks.")
        if isinstance(batch.images, CroppedImages):
            assert isinstance(batch.labels, CroppedImages)
            skip_random_numbers(generator, len(batch), _NUMBERS)  # so that colours get the same numbers
            images, labels = batch.images.pixels, batch.labels.pixels
        else:
            images, labels = self._cropped(batch.images, batch.labels, generator)
        pixels = images if self.colors is None else self.colors(images, generator)
        return SegmentationInputs(normalize(pixels, self.mean, self.std), labels[:, 0].long())

    def collate(
        self, samples: Sequence[SegmentationSample | SkippedSample], generator: torch.Generator, ignore_label: int = 255
    ) -> SegmentationBatch:
        """Return a batch as :class:`CollateSegmentation` does, of crops in place of whole pictures with masks.

        In a worker this leaves less to copy. Calling this object with the batch, and a generator in the state that this
        one was in, gives the inputs that it gives with the whole pictures.

        Raises:
            InputError: some pictures have a mask and some have none.
        """
        kept, skipped = part_skipped(samples)
        labels = _labels_of(kept)
        if labels is None:
            return CollateSegmentation(ignore_label)(samples)
        pack: Any = pack_images if self._resizes_first else separate_images
        sources = pack([s.image for s in kept]), pack(labels, ignore_label)
        images, classes = self._cropped(*sources, generator)
        sizes = sources[0].sizes
        return _batch_of(kept, skipped, CroppedImages(images, sizes), CroppedImages(classes, sizes))

    def _cropped(self, images: Any, labels: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return crops uint8 [N, 3, H, W] and their labels uint8 [N, 1, H, W]."""
        sizes = self._first_sizes(images.sizes)
        scaled, corners, flips = self._draw(sizes, generator)
        first, last = (flips, None) if self.flip_first else (None, flips)
        if self._resizes_first:
            images = self._resized_first(images, sizes, first)
            labels = self._resized_first(labels, sizes, first, nearest=True)
            first = None
        crops = resized_parts(images, scaled, corners, self.crop_size, first, mirrored=last)
        classes = resized_parts(labels, scaled, corners, self.crop_size, first, nearest=True, mirrored=last)
        if self.swapped_classes:
            order = constant(mirror_order(self.swapped_classes, 256), classes, torch.uint8)
            classes = torch.where(flips[:, None, None, None], order[classes.int()], classes)
        return crops, classes

    @property
    def _resizes_first(self) -> bool:
        return self.stretch or self.resize_shorter is not None

    def _first_sizes(self, sizes: Tensor) -> Tensor:
        """Return the pictures' sizes [N, 2] after the resize before scaling."""
        if self.stretch:
            return constant(self.crop_size, sizes, torch.int64).expand_as(sizes)
        if self.resize_shorter is None:
            return sizes
        shorter = sizes.amin(1, keepdim=True).to(widest_float(sizes.device))
        return torch.floor(sizes * self.resize_shorter / shorter + 0.5).to(torch.int64)

    def _resized_first(
        self, images: PackedImages, sizes: Tensor, flips: Tensor | None, *, nearest: bool = False
    ) -> PackedImages:
        """Return the pictures resized to `sizes` [N, 2], packed again."""
        height, width = self.crop_size if self.stretch or not len(sizes) else sizes.amax(0).tolist()
        resized = resized_parts(images, sizes, torch.zeros_like(sizes), (height, width), flips, nearest=nearest)
        pixels = resized[:, 0].to(images.values.dtype)
        for channel in range(1, resized.shape[1]):
            pixels = pixels | (resized[:, channel].to(torch.int32) << 8 * channel)
        if not self.stretch:
            rows, columns = (torch.arange(side, device=sizes.device) for side in (height, width))
            inside = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
            pixels = pixels[inside]
        counts = sizes.prod(1)
        return PackedImages(torch.cat([images.values[:1], pixels.flatten()]), 1 + counts.cumsum(0) - counts, sizes)

    def _draw(self, sizes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scaled sizes [N, 2], the crops' corners in them [N, 2], and what is mirrored [N]."""
        chance, *place, flip = random_numbers(generator, sizes.shape[0], _NUMBERS, sizes).unbind(1)
        least, most = self.scales
        if self.scale_step:
            steps = round((most - least) / self.scale_step)
            scale = least + torch.floor(chance * (steps + 1)) * self.scale_step
        else:
            scale = least + chance * (most - least)
        crop = constant(self.crop_size, sizes)
        side = torch.floor(self.base_size * scale + 0.5)
        own = sizes.amax(1, keepdim=True) if self.base_side == "longer" else sizes.amin(1, keepdim=True)
        scaled = torch.floor(sizes * side[:, None] / own + 0.5).to(torch.int64).clamp(min=1)
        room = (scaled - crop).clamp(min=0)
        corners = torch.floor(torch.stack(place, 1) * (room + 1)).to(torch.int64)
        return scaled, torch.minimum(corners, room), flip < self.flip_probability
