"""What goes into a detector beside images, and what comes out: ``ImageMeta``, ``Target`` and ``Detections``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.config.fields import is_real
from hrnet_fast.detection.boxes import shared_constant
from hrnet_fast.detection.head_configs import SemanticConfig
from hrnet_fast.errors import InputError, shown

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class ImageMeta:
    """The sizes of an image in a batch.

    Attributes:
        size: (height, width) in the network input, without padding.
        original_size: that of the picture before it was scaled; None if it was not.
        scale: (horizontal, vertical) factor from the picture to the network input.
        padded_size: size with the padding that this image alone would have; None for `size`.
    """

    size: tuple[int, int]
    original_size: tuple[int, int] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    padded_size: tuple[int, int] | None = None


@dataclass
class Target:
    """The objects of a training image, in pixels of the network input.

    Attributes:
        boxes: [M, 4] as x1, y1, x2, y2.
        labels: [M], from 0.
        masks: [M, H, W], 0 or 1, in the image's size or padded as far as the batch; for detectors with masks.
        ignored: boxes [K, 4] of crowds; the shipped configurations do not use them, ``AssignConfig.ignore_iof`` does.
        semantic: class of each pixel of the padded batch [H, W]; for detectors with a semantic branch.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None
    ignored: Tensor | None = None
    semantic: Tensor | None = None


@dataclass
class Detections:
    """The detections of an image, best first.

    Attributes:
        boxes: [K, 4] as x1, y1, x2, y2, in pixels of the picture.
        scores: [K].
        labels: [K], from 0.
        masks: [K, height, width], boolean, in the picture's size; None without mask heads.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)


@dataclass
class Regions:
    """Boxes of all images of a batch.

    Attributes:
        boxes: [K, 4].
        image: index of each box's image, ascending [K].
        scores, labels: of each box [K], where they are known.
        number: of each image's boxes, where it is known.
    """

    boxes: Tensor
    image: Tensor
    scores: Tensor | None = None
    labels: Tensor | None = None
    number: list[int] | None = None

    @property
    def counts(self) -> list[int]:
        """The number of boxes of each image, of regions that were selected or joined."""
        assert self.number is not None
        return self.number

    def split(self) -> list[Tensor]:
        """Return the boxes of each image."""
        return list(torch.split(self.boxes, self.counts))

    @classmethod
    def join(cls, boxes: Sequence[Tensor]) -> Regions:
        """Return the boxes of several images, given as one tensor [K, 4] for each."""
        counts = [len(part) for part in boxes]
        image = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor(counts)).to(boxes[0].device)
        return cls(torch.cat(list(boxes)), image, number=counts)


def sizes_of(metas: Sequence[ImageMeta], device: torch.device) -> Tensor:
    """Return (height, width) of each image in the network input, [N, 2]."""
    return shared_constant(tuple(tuple(meta.size) for meta in metas), torch.int64, device)


def scales_of(metas: Sequence[ImageMeta], like: Tensor) -> Tensor:
    """Return the factors of x1, y1, x2, y2 from each picture to the network input, [N, 4]."""
    return shared_constant(tuple((*meta.scale, *meta.scale) for meta in metas), like.dtype, like.device)


def check_metas(images: Tensor, metas: Sequence[ImageMeta] | None) -> list[ImageMeta]:
    """Return the sizes of a batch's images; without `metas`, images fill the batch and were not scaled.

    Raises:
        InputError: there is no image, not as many sizes as images, a size larger than the batch, or a scale that is not
            positive or whose original size is not given.
    """
    height, width = images.shape[-2:]
    if not len(images):
        raise InputError(f"Detector: the batch {tuple(images.shape)} has no image; accepted are one or more.")
    if metas is None:
        return [ImageMeta((height, width))] * len(images)
    if len(metas) != len(images) or not all(isinstance(meta, ImageMeta) for meta in metas):
        raise InputError(f"Detector: {len(images)} images need as many ImageMeta; {shown(metas)} given.")
    for meta in metas:
        if not (1 <= meta.size[0] <= height and 1 <= meta.size[1] <= width):
            raise InputError(f"Detector: ImageMeta.size={meta.size} does not lie in the batch of {height}x{width}.")
        if not _is_scale(meta.scale):
            raise InputError(
                f"Detector: ImageMeta.scale={shown(meta.scale)} must be positive: two finite numbers (horizontal, "
                "vertical)."
            )
        if meta.original_size is None and tuple(meta.scale) != (1.0, 1.0):
            raise InputError(
                f"Detector: ImageMeta.scale={meta.scale} needs original_size, the (height, width) before scaling."
            )
    return list(metas)


def _is_scale(scale: object) -> bool:
    if not isinstance(scale, (tuple, list)) or len(scale) != 2:
        return False
    return all(is_real(factor) and 0 < factor < math.inf for factor in scale)


def check_targets(
    images: Tensor,
    targets: Sequence[Target],
    metas: Sequence[ImageMeta],
    classes: int,
    masks: bool,
    semantic: SemanticConfig | None,
) -> list[Target]:
    """Return the targets of a batch on its device, without boxes that have no area.

    Raises:
        InputError: a target has another type, its parts do not belong together, or a part that the detector needs is
            absent.
    """
    if len(targets) != len(images) or not all(isinstance(t, Target) for t in targets):
        raise InputError(f"Detector: {len(images)} images need as many Target; {shown(targets)} given.")
    return [
        _checked_target(images, i, target, meta, classes, masks, semantic)
        for i, (target, meta) in enumerate(zip(targets, metas, strict=True))
    ]


def _checked_target(
    images: Tensor,
    index: int,
    target: Target,
    meta: ImageMeta,
    classes: int,
    masks: bool,
    semantic: SemanticConfig | None,
) -> Target:
    where = f"Detector: targets[{index}]"
    for name in ("boxes", "labels", "masks", "ignored", "semantic"):
        value = getattr(target, name)
        if not (isinstance(value, Tensor) or (value is None and name not in ("boxes", "labels"))):
            raise InputError(f"{where} has {name} {shown(value)}; accepted is a tensor.")
    dtype = torch.promote_types(images.dtype, torch.float32)  # pixels need more than 16 bits
    boxes, labels = target.boxes.to(images.device, dtype), target.labels.to(images.device)
    count = len(labels)
    if labels.dim() != 1 or labels.dtype not in _INTEGERS or boxes.shape != (count, 4):
        raise InputError(
            f"{where} has boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)} of {labels.dtype}; accepted are "
            "[M, 4] and integers [M]."
        )
    if count and not (bool(torch.isfinite(boxes).all()) and int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise InputError(f"{where}: boxes must be finite, and labels from 0 to {classes - 1}.")
    if masks and (target.masks is None or target.masks.dim() != 3 or len(target.masks) != count):
        raise InputError(f"{where}: this detector needs masks [{count}, H, W]; {shown(target.masks)} given.")
    if masks and target.masks is not None and count:
        sizes = tuple(zip(meta.size, target.masks.shape[1:], images.shape[-2:], strict=True))
        if not all(least <= size <= most for least, size, most in sizes):
            raise InputError(
                f"{where} has masks of {tuple(target.masks.shape[1:])}; accepted are sizes from the image's "
                f"{tuple(meta.size)} to the batch's {tuple(images.shape[-2:])}."
            )
    if semantic is not None and (target.semantic is None or target.semantic.shape != images.shape[-2:]):
        raise InputError(
            f"{where}: this detector needs semantic, the class of each pixel of the batch {tuple(images.shape[-2:])}; "
            f"{shown(target.semantic)} given."
        )
    if semantic is not None and target.semantic is not None:
        pixels = target.semantic
        fits = ((pixels >= 0) & (pixels < semantic.num_classes)) | (pixels == semantic.ignore_index)
        if not bool(fits.all()):
            raise InputError(
                f"{where}: semantic has values other than 0 to {semantic.num_classes - 1} and {semantic.ignore_index}, "
                "which marks pixels without a class."
            )
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    return Target(
        boxes[kept],
        labels.long()[kept],
        target.masks.to(images.device)[kept] if masks and target.masks is not None else None,
        None if target.ignored is None else target.ignored.to(boxes).reshape(-1, 4),
        None if semantic is None or target.semantic is None else target.semantic.to(images.device),
    )
