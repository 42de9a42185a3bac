"""Class scores of a picture from several passes: scales, mirror images and sliding windows, as the authors add them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.evaluation.batches import Network, last_output
from hrnet_fast.inference import flip_test
from hrnet_fast.keypoints import Pairs

WHAT = "evaluate_segmentation"


@dataclass(frozen=True)
class SegmentationPasses:
    """The passes of the authors' ``multi_scale_inference`` (segmentation repository, ``lib/datasets``).

    At each scale a picture is resized (half-pixel centres, as OpenCV does), logits are upsampled to its size, averaged
    with those of the mirror image and, with ``average="exp"``, exponentiated; windows that overlap are averaged. The
    result is resized to the picture and added up over scales.

    Attributes:
        scales, flip, base_size, window, stride, pad_windows, average: see
            :class:`~hrnet_fast.recipes.recipe.EvaluationRecipe`.
        swapped: pairs of classes that mirroring swaps.
        black: the normalised value of a black pixel in each channel, for padding.
        align_corners: of the upsampling of logits.
        batch_size: pictures or windows for each call.
    """

    scales: tuple[float, ...]
    flip: bool
    base_size: int | None
    window: tuple[int, int] | None
    stride: float
    pad_windows: bool
    average: str
    swapped: Pairs
    black: tuple[float, ...]
    align_corners: bool
    batch_size: int

    def __call__(self, network: Network, images: Tensor) -> Tensor:
        """Return the scores of normalised pictures of one size, [N, 3, H, W] to float [N, classes, H, W]."""
        height, width = images.shape[2:]
        total: Tensor | None = None
        for scale in self.scales:
            size = self._scaled(height, width, scale)
            scaled = images
            if size != (height, width):
                scaled = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
            scores = self.to_size(self._windowed(network, scaled), (height, width))
            total = scores if total is None else total + scores
        assert total is not None
        return total

    def _scaled(self, height: int, width: int, scale: float) -> tuple[int, int]:
        longer = max(height, width)
        side = int((self.base_size or longer) * scale + 0.5)
        if height > width:
            return max(side, 1), max(int(width * side / longer + 0.5), 1)
        return max(int(height * side / longer + 0.5), 1), max(side, 1)

    def to_size(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return maps resized bilinearly to (H, W)."""
        if tuple(maps.shape[2:]) == size:
            return maps
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=self.align_corners)

    def _windowed(self, network: Network, images: Tensor) -> Tensor:
        """Return scores [N, classes, H, W] of whole pictures, or of windows that cover them."""
        height, width = images.shape[2:]
        if self.window is None or (not self.pad_windows and height <= self.window[0] and width <= self.window[1]):
            return torch.cat([self._scores(network, part) for part in torch.split(images, self.batch_size)])
        rows, columns = (self._starts(length, side) for length, side in zip((height, width), self.window, strict=True))
        h, w = self.window if self.pad_windows else (min(self.window[0], height), min(self.window[1], width))
        below, right = max(rows[-1] + h - height, 0), max(columns[-1] + w - width, 0)
        padded = self._padded(images, below, right)
        places = [(i, y, x) for i in range(len(images)) for y in rows for x in columns]
        total: Tensor | None = None
        for first in range(0, len(places), self.batch_size):
            chosen = places[first : first + self.batch_size]
            windows = torch.stack([padded[i, :, y : y + h, x : x + w] for i, y, x in chosen])
            for (i, y, x), scores in zip(chosen, self._scores(network, windows), strict=True):
                if total is None:
                    total = scores.new_zeros(len(images), len(scores), *padded.shape[2:])
                total[i, :, y : y + h, x : x + w] += scores
        assert total is not None
        counts = _overlaps(rows, h, padded.shape[2], total)[:, None] * _overlaps(columns, w, padded.shape[3], total)
        return (total / counts)[:, :, :height, :width]

    def _starts(self, length: int, window: int) -> list[int]:
        """Return the first rows, or columns, of the windows along one side of a picture."""
        step = int(window * self.stride)
        starts = [i * step for i in range(max(0, math.ceil((length - window) / step)) + 1)]
        return starts if self.pad_windows else [max(0, min(start, length - window)) for start in starts]

    def _padded(self, images: Tensor, below: int, right: int) -> Tensor:
        if not below and not right:
            return images
        height, width = images.shape[2:]
        black = torch.tensor(self.black, dtype=images.dtype).to(images.device, non_blocking=True)
        padded = black[None, :, None, None].repeat(len(images), 1, height + below, width + right)
        padded[:, :, :height, :width] = images
        return padded

    def _scores(self, network: Network, images: Tensor) -> Tensor:
        def logits(x: Tensor) -> Tensor:
            return last_output(WHAT, network(x), 4)

        # Upsampling is linear: the mean with the mirror image's logits may come before it.
        maps = flip_test(logits, images, self.swapped, shift=False) if self.flip else logits(images)
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        maps = self.to_size(maps, (images.shape[2], images.shape[3]))
        return maps.exp() if self.average == "exp" else maps


def _overlaps(starts: list[int], window: int, length: int, like: Tensor) -> Tensor:
    """Return how many windows cover each position along one side."""
    counts = torch.zeros(length, dtype=like.dtype)
    for start in starts:
        counts[start : start + window] += 1
    return counts.to(like.device, non_blocking=True)
