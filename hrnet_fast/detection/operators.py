"""The operators of detectors that come from torchvision: non-maximum suppression and region pooling."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hrnet_fast.detection.boxes import areas, wide
from hrnet_fast.detection.results import Regions
from hrnet_fast.errors import MissingPackageError


def torchvision_operators() -> Any:
    """Return ``torchvision.ops``.

    Raises:
        MissingPackageError: torchvision is not installed, or is one for another torch.
    """
    try:
        from torchvision import ops
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise MissingPackageError(
            f"A detector needs torchvision's nms and roi_align, which cannot be imported ({str(error)[:200]}). Install "
            "the torchvision of this torch: pip install 'hrnet-fast[detection]'."
        ) from error
    return ops


@functools.lru_cache(maxsize=16)
def _slots(counts: tuple[int, ...], most: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return place in [levels * most], first entry and level of every candidate: `most` of each level, or all of it."""
    with torch.inference_mode(False):
        taken = torch.tensor([min(most, count) for count in counts])
        level = torch.repeat_interleave(torch.arange(len(counts)), taken)
        rank = torch.arange(len(level)) - (taken.cumsum(0) - taken)[level]
        starts = torch.tensor([0, *counts[:-1]]).cumsum(0)
        found = (level * most + rank, starts[level], level)
        return found[0].to(device), found[1].to(device), found[2].to(device)


def best_of_levels(scores: Tensor, counts: Sequence[int], most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the best entries of each level, of all levels and images by one selection.

    Their number depends on the sizes alone, so that nothing waits for the scores.

    Args:
        scores: [N, T], levels one after another; minus infinity where an entry is not to be taken.
        counts: entries of each level, T in all.
        most: of each level; a smaller level has all of its entries.

    Returns:
        Image [K], entry 0 .. T - 1 [K], level [K] and score [K], by image, level and descending score. Where a level
        has too few entries to take, the score is minus infinity, as it is for NaN.
    """
    padded = pad_sequence(
        [part.T for part in torch.split(scores, list(counts), dim=1)], batch_first=True, padding_value=-torch.inf
    )
    best, index = padded.permute(2, 0, 1).topk(min(most, padded.shape[1]), dim=2)
    place, start, level = _slots(tuple(counts), best.shape[2], scores.device)
    best, entry = best.flatten(1)[:, place], index.flatten(1)[:, place] + start
    entry = entry.clamp(max=scores.shape[1] - 1)  # of equal minus infinities, one of the padding may have been taken
    image = torch.arange(len(scores), device=scores.device)[:, None].expand_as(entry)
    best = torch.where(best > -torch.inf, best, -torch.inf)
    return image.flatten(), entry.flatten(), level.expand_as(entry).flatten(), best.flatten()


def suppress(found: Regions, group: Tensor, groups: int, images: int, iou: float, most: int) -> Regions:
    """Return the boxes that non-maximum suppression keeps, by image and descending score, with their numbers.

    Only boxes of one image and one group compete. Overlaps are computed in float64, so that the shift by which all
    groups are treated at once costs no accuracy.

    Args:
        found: K boxes with scores. Those with a score of minus infinity are not kept.
        group: class or level of each box, below `groups`, [K].
        images: their number.
        iou: a box that overlaps a better one by more is dropped.
        most: boxes kept of an image.
    """
    boxes, scores, image = found.boxes, found.scores, found.image
    assert scores is not None
    kept = torchvision_operators().batched_nms(boxes.double(), scores.double(), image * groups + group, iou)
    kept = kept.sort().values  # of equal scores the first stands before the others
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    kept = kept[image[kept].argsort(stable=True)]
    owner = image[kept]
    each = torch.arange(images, device=kept.device)
    starts = torch.searchsorted(owner, each)
    numbers = ((owner == each[:, None]) & (scores[kept] > -torch.inf)).sum(dim=1).clamp(max=most)
    ranges = torch.stack([starts, numbers]).tolist()  # the one wait for the scores, besides batched_nms' own
    chosen = torch.cat([kept[start : start + number] for start, number in zip(*ranges, strict=True)])
    labels = None if found.labels is None else found.labels[chosen]
    return Regions(boxes[chosen], image[chosen], scores[chosen], labels, ranges[1])


def region_levels(boxes: Tensor, finest_size: float, levels: int) -> Tensor:
    """Return the level that each of `boxes` [K, 4] is pooled from (arXiv 1612.03144, equation 1)."""
    sides = areas(boxes).clamp(min=0).sqrt()
    return torch.log2(sides / finest_size + 1e-6).floor().clamp(0, levels - 1).long()


def pool_regions(
    maps: Sequence[Tensor],
    strides: Sequence[float],
    boxes: Tensor,
    image: Tensor,
    size: int,
    finest_size: float,
    legacy: bool = False,
) -> Tensor:
    """Return the pooled regions [K, C, size, size] (RoIAlign with half-pixel shift and adaptive sampling).

    With `legacy` there is no shift, and a cell has 2x2 samples.

    Args:
        maps: one or more levels [N, C, H, W].
        strides: of the levels, in pixels of the network input.
        boxes: [K, 4] in pixels of the network input.
        image: index of each box's image, [K].
        size: cells of a region in each direction.
        finest_size: see :func:`region_levels`.
    """
    align, dtype = torchvision_operators().roi_align, maps[0].dtype
    samples, shifted = (2, False) if legacy else (-1, True)
    maps = [wide(one) for one in maps]  # regions have the dtype of maps
    regions = torch.cat([image[:, None].to(boxes), boxes], dim=1).to(maps[0].dtype)
    if len(maps) == 1:
        pooled: Tensor = align(maps[0], regions, size, 1 / strides[0], samples, shifted)
        return pooled.to(dtype)
    level, order = region_levels(boxes, finest_size, len(maps)).sort(stable=True)
    counts = (level[None] == torch.arange(len(maps), device=level.device)[:, None]).sum(dim=1).tolist()
    parts = [
        align(level_map, part, size, 1 / stride, samples, shifted)
        for level_map, stride, part in zip(maps, strides, torch.split(regions[order], counts), strict=True)
    ]
    return torch.cat(parts).to(dtype)[order.argsort()]
