"""The mask head of a stage: its layers, targets, loss, and the pasting of masks into pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from hrnet_fast.detection.assignment import Sample
from hrnet_fast.detection.head_configs import MaskConfig
from hrnet_fast.detection.layers import ConvReLU, conv_tower, draw_kaiming
from hrnet_fast.detection.operators import torchvision_operators
from hrnet_fast.detection.results import Target

# Pixels of masks that are pasted at once: 256 MiB in float32.
PASTED_AT_ONCE = 2**26


class MaskHead(nn.Module):
    """The layers; keys as in mmdetection's ``FCNMaskHead`` and ``HTCMaskHead``.

    Takes pooled regions [K, C, S, S], and with `joins` the features of the head before; returns mask logits
    [K, classes, 2S, 2S] and its features.
    """

    def __init__(self, in_channels: int, num_classes: int, config: MaskConfig, joins: bool) -> None:
        super().__init__()
        width = config.channels
        self.convs = conv_tower(in_channels, width, config.num_convs)
        self.upsample = nn.ConvTranspose2d(width, width, 2, 2)
        self.conv_logits = nn.Conv2d(width, 1 if config.class_agnostic else num_classes, 1)
        if joins:
            self.conv_res = ConvReLU(width, width, 1)
        draw_kaiming(self)

    def features(self, pooled: Tensor, before: Tensor | None = None) -> Tensor:
        """Return the features before the upsampling."""
        x = pooled if before is None else pooled + self.conv_res(before)
        for conv in self.convs:
            x = conv(x)
        return x

    def forward(self, pooled: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = self.features(pooled, before)
        return self.conv_logits(relu(self.upsample(features))), features


def of_class(masks: Tensor, labels: Tensor) -> Tensor:
    """Return the mask of one class for each row, [K, H, W] of [K, classes, H, W]; the only one if classes share it."""
    if masks.shape[1] == 1:
        return masks[:, 0]
    return masks[torch.arange(len(masks), device=masks.device), labels]


def mask_targets(samples: Sequence[Sample], targets: Sequence[Target], size: int) -> Tensor:
    """Return the masks of the positives' objects inside their boxes, 0 or 1, [P, size, size]."""
    align = torchvision_operators().roi_align
    parts = []
    for found, target in zip(samples, targets, strict=True):
        boxes, masks = found.positive_boxes, target.masks
        assert masks is not None  # check_targets has seen them
        height, width = masks.shape[-2:]
        limits = boxes.new_tensor([width, height, width, height])
        regions = torch.cat([found.objects[:, None].to(boxes), torch.minimum(boxes.clamp(min=0), limits)], dim=1)
        inside = (
            align(masks[:, None].to(boxes), regions, size, 1.0, -1, True)
            if len(boxes)
            else boxes.new_zeros(0, 1, size, size)
        )
        parts.append((inside[:, 0] >= 0.5).to(boxes.dtype))
    return torch.cat(parts)


def mask_loss(logits: Tensor, samples: Sequence[Sample], targets: Sequence[Target], weight: float) -> Tensor:
    """Return the mean loss over the positives' pixels; 0 without positives."""
    labels = torch.cat([found.labels[: found.positives] for found in samples])
    goals = mask_targets(samples, targets, logits.shape[-1])
    total = binary_cross_entropy_with_logits(of_class(logits, labels), goals, reduction="sum")
    return weight * total / max(goals.numel(), 1)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Return masks in a picture's pixels, boolean [K, height, width].

    A mask is sampled bilinearly at the centres of pixels, and is 0 around. A box without area has an empty mask.

    Args:
        masks: probabilities in each box, [K, S, S].
        boxes: [K, 4] in pixels of the picture; they may reach beyond it.
        size: (height, width) of the picture.
        threshold: least probability of a pixel of the mask.
    """
    height, width = size
    pasted = []
    step = max(1, PASTED_AT_ONCE // max(height * width, 1))
    with torch.autocast(boxes.device.type, enabled=False):
        for part, box in zip(torch.split(masks.to(boxes), step), torch.split(boxes, step), strict=True):
            x1, y1, x2, y2 = box.unbind(dim=1)
            down, across = _taps(y1, y2, height, part.shape[1]), _taps(x1, x2, width, part.shape[2])
            solid = ((x2 > x1) & (y2 > y1))[:, None, None]
            pasted.append((down @ part @ across.mT >= threshold) & solid)
    return torch.cat(pasted)


def _taps(start: Tensor, end: Tensor, pixels: int, cells: int) -> Tensor:
    """Return the bilinear weights [K, pixels, cells] of a mask's cells at the centres of a picture's pixels.

    Args:
        start, end: of each box [K] in pixels.
        pixels: of the picture along this direction.
        cells: of the mask.
    """
    centres = torch.arange(pixels, device=start.device).to(start) + 0.5
    sides = torch.where(end > start, end - start, 1)
    position = (centres - start[:, None]) / sides[:, None] * cells - 0.5
    return (1 - (position[..., None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)
