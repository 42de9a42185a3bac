"""Batches of detection, collated in the workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.datasets.packed_images import MovedTogether, PackedImages, pack_images, part_skipped
from hrnet_fast.datasets.samples import DetectionSample, SkippedSample

UNLABELLED = 255  # of a semantic map, and around it


@dataclass(frozen=True)
class DetectionBatch(MovedTogether):
    """N samples; see :class:`~hrnet_fast.datasets.DetectionSample`.

    Attributes:
        images: the pictures.
        boxes, labels: of the objects of all pictures, [T, 4] and [T].
        ignored: of all pictures, [K, 4].
        masks: of all objects, or None.
        semantic: of the pictures, or None.
        sizes: (height, width) of each picture, on the host.
        counts, ignored_counts: objects and ignored regions of each picture.
        image_ids, paths, rows: of each picture.
        skipped: what was left out of the batch.
    """

    images: PackedImages
    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    masks: PackedImages | None
    semantic: PackedImages | None
    sizes: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    ignored_counts: tuple[int, ...]
    image_ids: tuple[int, ...]
    paths: tuple[str, ...]
    rows: tuple[str, ...]
    skipped: tuple[SkippedSample, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def pictures(self) -> list[Tensor]:
        """Return the pictures as RGB bytes [H, W, 3], views of this batch."""
        found, start = [], 1
        for height, width in self.sizes:
            pixels = self.images.values[start : start + height * width]
            found.append(pixels.view(torch.uint8).view(height, width, 4)[..., :3])
            start += height * width
        return found


def collate_detection(samples: Sequence[DetectionSample | SkippedSample]) -> DetectionBatch:
    """Make a batch, for ``DataLoader(collate_fn=...)``; skipped samples are listed apart."""
    kept, skipped = part_skipped(samples)
    images = [sample.image for sample in kept if sample.image is not None]
    masks = [mask for sample in kept if sample.masks is not None for mask in sample.masks]
    maps = [sample.semantic for sample in kept if sample.semantic is not None]
    none = torch.zeros(0, 4)
    return DetectionBatch(
        images=pack_images(images),
        boxes=torch.cat([none, *(sample.boxes for sample in kept)]),
        labels=torch.cat([torch.zeros(0, dtype=torch.int64), *(sample.labels for sample in kept)]),
        ignored=torch.cat([none, *(sample.ignored for sample in kept)]),
        masks=pack_images(masks) if masks else None,
        semantic=pack_images(maps, UNLABELLED) if maps else None,
        sizes=tuple((image.shape[0], image.shape[1]) for image in images),
        counts=tuple(len(sample.labels) for sample in kept),
        ignored_counts=tuple(len(sample.ignored) for sample in kept),
        image_ids=tuple(sample.image_id for sample in kept),
        paths=tuple(sample.path for sample in kept),
        rows=tuple(sample.row for sample in kept),
        skipped=skipped,
    )
