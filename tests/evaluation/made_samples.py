"""Samples in memory, with pictures of several sizes, for the tests of evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hrnet_fast import datasets
from hrnet_fast.datasets.keypoint_dataset import KeypointRow
from hrnet_fast.recipes.sections import EvaluationRecipe


def picture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """Save smooth noise as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def keypoint_dataset(
    folder: Path, boxes: Tensor, keypoints: int, size: tuple[int, int] = (80, 100), **options: Any
) -> datasets.KeypointDataset:
    """Return a data set with a picture for each box [N, 4] and points spread over the box, one of them invisible.

    The pictures have `size` (H, W) and more.
    """
    dataset = datasets.KeypointDataset([str(i) for i in range(keypoints)], **options)
    rows = []
    for i, box in enumerate(boxes.double().numpy()):
        path = picture(folder / f"{i}.png", size[0] + 8 * i, size[1] + 4 * i, i)
        points = box[:2] + box[2:] * np.random.default_rng(i).uniform(0.1, 0.9, (keypoints, 2))
        visible = np.ones(keypoints)
        visible[i % keypoints] = 0
        rows.append(KeypointRow(str(path), f"row {i}", points, visible, tuple(box), image_id=i, box_size=50.0 + i))
    return dataset.fill(rows, str(folder))


def segmentation_dataset(
    folder: Path, sizes: Sequence[tuple[int, int]], classes: int, **options: Any
) -> datasets.SegmentationDataset:
    """Return a data set with a picture and a mask of each size (H, W); some pixels are ignored."""
    for i, (height, width) in enumerate(sizes):
        picture(folder / "pictures" / f"{i}.png", height, width, i)
        draw = np.random.default_rng(100 + i)
        mask = draw.integers(0, classes, (height, width), dtype=np.uint8)
        mask[draw.random((height, width)) < 0.1] = 255
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return datasets.mask_folders(folder / "pictures", folder / "masks", classes, **options)


def recipe(metric: str, **changes: Any) -> EvaluationRecipe:
    return EvaluationRecipe(metric, **changes)


def answers(samples: Any) -> tuple[Tensor, Tensor]:
    """Return points [N, K, 2] and scores [N, K] of the samples of an evaluation."""
    return (
        torch.tensor([sample.answer["points"] for sample in samples]),
        torch.tensor([sample.answer["scores"] for sample in samples]),
    )
