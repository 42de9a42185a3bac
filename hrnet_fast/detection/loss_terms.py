"""Loss terms of detectors, with the divisors of mmdetection."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from hrnet_fast.detection.boxes import paired_iou
from hrnet_fast.detection.config_parts import BoxLossConfig

# mmdetection adds float32's spacing to a divisor that it is given (``weight_reduce_loss``), in every dtype.
SPACING = torch.finfo(torch.float32).eps
LEAST_IOU = 1e-6


def box_delta_loss(deltas: Tensor, goals: Tensor, config: BoxLossConfig) -> Tensor:
    """Return the weighted loss of each entry."""
    distance = (deltas - goals).abs()
    if config.kind == "smooth_l1":
        smooth = 0.5 * distance.square() / config.beta
        distance = torch.where(distance < config.beta, smooth, distance - 0.5 * config.beta)
    return config.weight * distance


def focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss (arXiv 1708.02002) of each entry of logits [T, C].

    Args:
        labels: class of each row, C for the background, [T].
    """
    classes = logits.shape[1]
    goals = one_hot(labels, classes + 1)[:, :classes].to(logits)
    share = logits.sigmoid()
    missed = (1 - share) * goals + share * (1 - goals)
    weight = (alpha * goals + (1 - alpha) * (1 - goals)) * missed.pow(gamma)
    return weight * binary_cross_entropy_with_logits(logits, goals, reduction="none")


def iou_loss(boxes: Tensor, goals: Tensor) -> Tensor:
    """Return minus the logarithm of the IoU of each of `boxes` with its goal, both [K, 4] (UnitBox, 1608.01471)."""
    return -paired_iou(boxes, goals).clamp(min=LEAST_IOU).log()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the percentage of rows [K, C] whose largest logit is their label's; 0 for no rows."""
    hits = (logits.argmax(dim=1) == labels).to(logits.dtype)
    return hits.sum() * (100.0 / max(len(labels), 1))


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a number over the processes of distributed training; the number itself without them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
