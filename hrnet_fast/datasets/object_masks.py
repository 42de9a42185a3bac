"""Masks of objects from COCO's polygons and run-length encodings."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrnet_fast.datasets.reading import fail
from hrnet_fast.errors import DatasetError, MissingPackageError

_MODULES = ("faster_coco_eval.core.mask", "pycocotools.mask")
# RuntimeError: of the packages' compiled parts, for values of a wrong type.
_UNDECODABLE = (KeyError, TypeError, ValueError, IndexError, OverflowError, RuntimeError)


def mask_module() -> Any:
    """Return the module that decodes masks as COCO's tools do.

    Raises:
        MissingPackageError: neither faster-coco-eval nor pycocotools is installed.
    """
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingPackageError(
        "COCO's masks are decoded by faster-coco-eval or pycocotools, and neither is installed: pip install "
        "'hrnet-fast[coco]'."
    )


def object_masks(segmentations: Sequence[Any], size: tuple[int, int], path: str, row: str) -> Tensor:
    """Return masks of 0 and 1, uint8 [M, H, W]; parts beyond the picture are cut off.

    Args:
        segmentations: of each object polygons, or a run-length encoding with compressed or plain counts.
        size: (H, W) of the picture.
        path, row: for messages.

    Raises:
        DatasetError: a segmentation cannot be decoded, or is of another size.
    """
    module = mask_module()
    masks = np.zeros((len(segmentations), *size), dtype=np.uint8)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        try:
            given = tuple(segmentation.get("size", ())) if isinstance(segmentation, dict) else size
            if given != size:
                reason = f"a mask of the size {given} for a picture of {size}"
                raise fail(path, row, reason, "one (height, width) for both")
            mask[:] = module.decode(_encoded(module, segmentation, size))
        except DatasetError:
            raise
        except _UNDECODABLE as error:
            reason = f"a mask that cannot be decoded ({type(error).__name__}: {str(error)[:80]})"
            raise fail(path, row, reason, "polygons of 3 points or more, or a run-length encoding") from error
    return torch.from_numpy(masks)


def _encoded(module: Any, segmentation: Any, size: tuple[int, int]) -> Any:
    """Return a run-length encoding with compressed counts."""
    if isinstance(segmentation, dict):
        plain = isinstance(segmentation["counts"], list)
        if not plain and not isinstance(segmentation["counts"], (str, bytes)):
            raise ValueError(f"counts are {type(segmentation['counts']).__name__}, neither text nor a list")
        if plain and any(count < 0 for count in segmentation["counts"]):
            raise ValueError("a negative count")
        if plain and sum(segmentation["counts"]) != size[0] * size[1]:
            raise ValueError(f"its counts are {sum(segmentation['counts'])} pixels together")
        return module.frPyObjects(segmentation, *size) if plain else segmentation
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
        raise ValueError("a polygon with fewer than 6 numbers, or an odd count")
    return module.merge(module.frPyObjects(segmentation, *size))
