"""Boxes as x1, y1, x2, y2: overlaps, deltas and clipping."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Largest change of a side's logarithm that deltas may ask for (mmdetection's ``wh_ratio_clip``).
MOST_GROWTH = abs(math.log(16 / 1000))
LEAST_AREA = 1e-6


@functools.lru_cache(maxsize=64)
def shared_constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of numbers, not to be changed: calls with these arguments share it.

    A copy of numbers to a GPU waits for the work before it.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def wide(values: Tensor) -> Tensor:
    """Return values in float32 if they have 16 bits: these do not tell neighbouring pixels of a picture apart."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def areas(boxes: Tensor) -> Tensor:
    """Return the areas of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersections(first: Tensor, second: Tensor) -> Tensor:
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    sides = sides.clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes [..., 4] that broadcast; 0 for two boxes without area."""
    shared = _intersections(first, second)
    return shared / (areas(first) + areas(second) - shared).clamp(min=LEAST_AREA)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersections over unions [M, K] of boxes [M, 4] and [K, 4]."""
    return paired_iou(first[:, None], second[None])


def covered_share(boxes: Tensor, regions: Tensor) -> Tensor:
    """Return the share of each of `boxes` [M, 4] that lies in each of `regions` [K, 4], as [M, K]."""
    return _intersections(boxes[:, None], regions[None]) / areas(boxes)[:, None].clamp(min=LEAST_AREA)


def encode(boxes: Tensor, goals: Tensor, stds: Sequence[float], legacy: bool = False) -> Tensor:
    """Return the deltas [K, 4] that turn `boxes` into `goals`, both [K, 4] (R-CNN, arXiv 1311.2524, appendix C).

    With `legacy` sides are longer by 1, as in mmdetection's ``LegacyDeltaXYWHBBoxCoder``.
    """
    (centres, sides), (goal_centres, goal_sides) = _centres_and_sides(boxes, legacy), _centres_and_sides(goals, legacy)
    deltas = torch.cat([(goal_centres - centres) / sides, torch.log(goal_sides / sides)], dim=1)
    return deltas / shared_constant(tuple(stds), deltas.dtype, deltas.device)


def decode(
    boxes: Tensor, deltas: Tensor, stds: Sequence[float], sizes: Tensor | None = None, legacy: bool = False
) -> Tensor:
    """Return the boxes that deltas make of `boxes`, both [..., 4] that broadcast, clipped if sizes are given.

    Args:
        boxes: in pixels.
        deltas: as :func:`encode` returns them.
        stds: those of :func:`encode`.
        sizes: (height, width) of the images, [..., 2].
        legacy: as in :func:`encode`; boxes are then clipped to sizes less 1.
    """
    deltas = deltas * shared_constant(tuple(stds), deltas.dtype, deltas.device)
    centres, sides = _centres_and_sides(boxes, legacy)
    centres = centres + sides * deltas[..., :2]
    half = sides * deltas[..., 2:].clamp(-MOST_GROWTH, MOST_GROWTH).exp() / 2
    made = torch.cat([centres - half, centres + half], dim=-1)
    if sizes is None:
        return made
    return clip(made, sizes - 1 if legacy else sizes)


def _centres_and_sides(boxes: Tensor, legacy: bool) -> tuple[Tensor, Tensor]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return (boxes[..., :2] + boxes[..., 2:]) / 2, sides + 1 if legacy else sides


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return boxes [..., 4] moved into images of `sizes` (height, width), [..., 2]."""
    limits = sizes.flip(-1).to(boxes)
    return torch.minimum(boxes, torch.cat([limits, limits], dim=-1)).clamp(min=0)
