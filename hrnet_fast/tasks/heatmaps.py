"""Keypoints from heatmaps (paper, section 4, "Testing")."""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.tasks.prediction import Box

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
COCO_FLIP = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
COCO_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip


def decode(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Return each heatmap's peak, moved a quarter pixel towards its higher neighbours, and its value.

    Args:
        heatmaps: floating [K, h, w].

    Returns:
        ``(points, values)``: [K, 2] as (x, y) in heatmap pixels, and [K].
    """
    k, h, w = heatmaps.shape
    maps = heatmaps.float()
    values, flat = maps.flatten(1).max(dim=1)
    x, y = flat % w, flat // w
    each = torch.arange(k)

    def slope(dy: int, dx: int) -> Tensor:
        after = maps[each, (y + dy).clamp(max=h - 1), (x + dx).clamp(max=w - 1)]
        before = maps[each, (y - dy).clamp(min=0), (x - dx).clamp(min=0)]
        coordinate, last = (x, w - 1) if dx else (y, h - 1)
        # At the border there is no second neighbour to compare with.
        inside = (coordinate > 0) & (coordinate < last)
        return torch.where(inside, torch.sign(after - before), torch.zeros(()))

    points = torch.stack([x + 0.25 * slope(0, 1), y + 0.25 * slope(1, 0)], dim=1)
    return points, values


def to_image(points: Tensor, heatmap_size: tuple[int, int], box: Box) -> Tensor:
    """Map (x, y) of heatmap pixels [K, 2] into the image that `box` was cropped from."""
    h, w = heatmap_size
    left, top, width, height = box
    scale = torch.tensor([width / w, height / h])
    return (points + 0.5) * scale + torch.tensor([left, top]) - 0.5


def flip_back(heatmaps: Tensor, pairs: tuple[int, ...]) -> Tensor:
    """Undo a mirroring: [N, K, h, w] reversed in width, left and right keypoints exchanged."""
    return heatmaps.flip(-1)[:, list(pairs)]
