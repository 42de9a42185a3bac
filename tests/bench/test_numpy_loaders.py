"""Without chance, the contenders of the input benchmark make the inputs that this package makes of the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.bench_input_pipeline import pose_crops, pose_data, segmentation_data
from benchmarks.numpy_loaders import UNAVAILABLE, NumpyKeypoints, NumpySegmentation
from hrnet_fast import datasets

pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
MEAN, STD = ((torch.tensor(v)[:, None, None]) for v in (datasets.MEAN, datasets.STD))


def grey_levels(images: torch.Tensor) -> torch.Tensor:
    return (images * STD + MEAN) * 255


def test_keypoints(tmp_path: Path) -> None:
    dataset, crops = pose_data(tmp_path / "data", (120, 160), 4, 2), pose_crops((64, 48))
    made = crops(datasets.collate_keypoints([dataset[i] for i in range(4)]))
    contender = NumpyKeypoints(dataset, crops, chance=False)
    for i in range(4):
        image, targets, weights = contender[i]
        apart = (grey_levels(image) - grey_levels(made.images[i])).abs()
        assert apart.mean() < 0.5  # OpenCV 5 does not round positions to 1/32 pixel, and JPEG decoders differ
        assert torch.equal(weights, made.weights[i])
        torch.testing.assert_close(targets, made.targets[i], rtol=1e-6, atol=1e-7)
    assert made.targets.amax() == 1
    chances = NumpyKeypoints(dataset, crops)
    assert not torch.equal(chances[0][0], chances[0][0])


def test_pixels(tmp_path: Path) -> None:
    dataset = segmentation_data(tmp_path / "data", (48, 64), 2, 2)
    batch = datasets.CollateSegmentation()([dataset[0], dataset[1]])
    # As wide as the picture, so that nothing is left to chance; below it is padding.
    crops = datasets.SegmentationCrops((64, 64), 64, scales=(1.0, 1.0), flip_probability=0)
    made, contender = crops(batch, torch.Generator()), NumpySegmentation(dataset, crops, chance=False)
    for i in range(2):
        image, labels = contender[i]
        torch.testing.assert_close(image, made.images[i], rtol=0, atol=1e-5)
        assert torch.equal(labels, made.labels[i])
        assert (labels[48:] == 255).all()
    chances = NumpySegmentation(dataset, datasets.SegmentationCrops((32, 32), 64))
    assert chances[0][0].shape == (3, 32, 32)
