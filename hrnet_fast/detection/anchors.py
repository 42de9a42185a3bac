"""Anchors of a region proposal network, and the points of FCOS, over all levels."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.detection.config_parts import AnchorConfig

Sizes = tuple[tuple[int, int], ...]


def cell_anchors(config: AnchorConfig, stride: float, legacy: bool = False) -> Tensor:
    """Return the anchors [A, 4] of the cell at the origin, in float64; A runs over ratios, then scales.

    With `legacy` they lie around the middle of the cell's pixels, and their corners are whole pixels, the last ones of
    the anchor, as in mmdetection's ``LegacyAnchorGenerator``.
    """
    ratios = torch.tensor(config.ratios, dtype=torch.float64).sqrt()[:, None]
    scales = stride * torch.tensor(config.scales, dtype=torch.float64)[None]
    widths, heights = (scales / ratios).flatten(), (scales * ratios).flatten()
    if legacy:
        low, high = (stride - torch.stack([widths, heights])) / 2, (stride + torch.stack([widths, heights])) / 2 - 1
        return torch.cat([low, high]).T.round()
    return torch.stack([-widths, -heights, widths, heights], dim=1) / 2


def _cells(size: tuple[int, int], stride: float, offset: float) -> Tensor:
    """Return (x, y) of all cells of a map of `size` (height, width), row by row, as float64 [H * W, 2]."""
    ys, xs = ((torch.arange(n, dtype=torch.float64) + offset) * stride for n in size)
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(-1, 2)


@functools.lru_cache(maxsize=16)
def grid_anchors(
    config: AnchorConfig, sizes: Sizes, dtype: torch.dtype, device: torch.device, legacy: bool = False
) -> Tensor:
    """Return all anchors [T, 4] for maps of `sizes` (height, width), over levels, rows, columns and a cell's anchors.

    The result is shared by the calls with these arguments, and not to be changed.
    """
    with torch.inference_mode(False):
        levels = [
            (_cells(size, stride, 0.0).repeat(1, 2)[:, None] + cell_anchors(config, stride, legacy)).reshape(-1, 4)
            for size, stride in zip(sizes, config.strides, strict=True)
        ]
        return torch.cat(levels).to(dtype).to(device)


@functools.lru_cache(maxsize=16)
def grid_points(
    strides: Sequence[float], sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the centres [T, 2] of all cells, over levels, rows and columns, and the index of each one's level [T]."""
    with torch.inference_mode(False):
        levels = [_cells(size, stride, 0.5) for size, stride in zip(sizes, strides, strict=True)]
        index = torch.repeat_interleave(torch.arange(len(levels)), torch.tensor([len(level) for level in levels]))
        return torch.cat(levels).to(dtype).to(device), index.to(device)


def usable_anchors(
    config: AnchorConfig,
    sizes: Sizes,
    anchors: Tensor,
    image: tuple[int, int],
    padded: tuple[int, int],
    border: int,
) -> Tensor:
    """Return which anchors [T] an image is trained on.

    Args:
        config: of the anchors.
        sizes: of the maps.
        anchors: [T, 4], all of them.
        image: (height, width) of the image without padding.
        padded: that of the image with its own padding; cells beyond it are left out.
        border: anchors may reach so many pixels beyond the image; negative for any number.
    """
    cells = []
    for (height, width), stride in zip(sizes, config.strides, strict=True):
        inside = [torch.arange(n) < -(-p // stride) for n, p in zip((height, width), padded, strict=True)]
        cells.append((inside[0][:, None] & inside[1][None]).flatten().repeat_interleave(config.per_cell))
    usable = torch.cat(cells).to(anchors.device)
    if border >= 0:
        height, width = image
        usable &= (anchors[:, :2] >= -border).all(dim=1)
        usable &= (anchors[:, 2] < width + border) & (anchors[:, 3] < height + border)
    return usable
