"""Crops, targets and random boxes equal what the authors' loaders made (``record_authors_batches.py``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import PAIRS, UPPER, pattern, seeded_points

from hrnet_fast import datasets
from hrnet_fast.datasets.box_augmentation import BoxAugmentation, BoxDraw

RECORDED = np.load(Path(__file__).parent / "authors_batches.npz")
COCO_CROPS = datasets.KeypointCrops((64, 48), (16, 12), flip_pairs=PAIRS, upper_body=UPPER)


def sample(i: int) -> datasets.KeypointSample:
    points, visible = (torch.from_numpy(values).float() for values in seeded_points(i))
    box = torch.tensor([16.0, -2, 48, 64]) if i % 2 else torch.tensor([5.0, 5, 20, 30])
    return datasets.KeypointSample(torch.from_numpy(pattern(60, 80)), points, visible, box, "made", str(i))


def recorded_draw() -> BoxDraw:
    """The boxes, rotations and mirrored pictures that the authors' code drew."""
    x, y, width, height, rotation, flip = torch.from_numpy(np.stack([RECORDED[f"pose{i}_draw"] for i in range(10)])).T
    boxes = torch.stack([x - 100 * width, y - 100 * height, 200 * width, 200 * height], 1)
    return BoxDraw(boxes, rotation, flip > 0)


@pytest.fixture(scope="module")
def batch() -> datasets.KeypointBatch:
    return datasets.collate_keypoints([sample(i) for i in range(10)])


def test_warped_bytes_are_those_of_opencv_4(batch: datasets.KeypointBatch) -> None:
    matrices = torch.from_numpy(np.stack([RECORDED[f"pose{i}_matrix"] for i in range(10)]))
    crops = datasets.warp_images(batch.images, matrices, (64, 48), recorded_draw().flips)
    expected = torch.from_numpy(np.stack([RECORDED[f"pose{i}_crop"] for i in range(10)]))
    assert recorded_draw().flips.any()
    assert (crops == 0).any(), "a part of a crop is outside of its picture"
    assert torch.equal(crops.permute(0, 2, 3, 1), expected)


def test_targets_and_weights_are_the_authors(batch: datasets.KeypointBatch) -> None:
    """And the crops, but for their rounding of the boxes' corners to float32, which moves a pixel in 10,000."""
    draw = recorded_draw()
    made = datasets.KeypointCrops(**{**vars(COCO_CROPS), "mean": (0, 0, 0), "std": (1, 1, 1)}).apply(batch, draw)
    targets = np.stack([RECORDED[f"pose{i}_target"] for i in range(10)])
    weights = np.stack([RECORDED[f"pose{i}_weight"][:, 0] for i in range(10)])
    assert np.array_equal(made.targets.numpy(), targets)
    assert np.array_equal(made.weights.numpy(), weights)
    assert 0 < weights.mean() < 1
    expected = torch.from_numpy(np.stack([RECORDED[f"pose{i}_crop"] for i in range(10)])).permute(0, 3, 1, 2)
    difference = (made.images * 255).round() - expected.float()
    assert (difference.abs() > 1).float().mean() < 1e-3
    assert difference.abs().max() <= 8


@pytest.mark.parametrize(("half", "chance"), [("upper", 0.0), ("lower", 0.999)])
def test_half_bodies_are_the_authors(batch: datasets.KeypointBatch, half: str, chance: float) -> None:
    x, y, width, height = torch.from_numpy(RECORDED[f"half_{half}"]).T
    expected = torch.stack([x - 100 * width, y - 100 * height, 200 * width, 200 * height], 1)
    chances = torch.full((10,), chance, dtype=torch.float64)
    boxes, found = BoxAugmentation()._half_bodies(batch.points.double(), batch.visible > 0, UPPER, chances, (64, 48))
    assert found.all()
    torch.testing.assert_close(boxes.float(), expected.float(), rtol=0, atol=1e-4)  # theirs are float32


@pytest.mark.parametrize(("case", "numbers"), [(0, (0, 0, 0, 1)), (1, (9, 3, 17, 0)), (2, (16, 30, 41, 1))])
def test_segmentation_crops_are_the_authors(
    case: int, numbers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = torch.from_numpy(pattern(40, 56))
    sample = datasets.SegmentationSample(picture, picture[..., 0] // 13, "made", "")
    crops = datasets.SegmentationCrops((32, 48), 56, (0.5, 2.1), 0.1)
    step, row, column, right_way = numbers
    chances = torch.tensor([[(step + 0.5) / 17, 0.0, 0.0, 0.9 if right_way else 0.1]], dtype=torch.float64)
    monkeypatch.setattr(datasets.segmentation_batches, "random_numbers", lambda *_: chances)
    scaled, _, flips = crops._draw(torch.tensor([[40, 56]]), torch.Generator())
    corners = torch.tensor([[row, column]])
    monkeypatch.setattr(datasets.SegmentationCrops, "_draw", lambda *_: (scaled, corners, flips))
    made = crops(datasets.CollateSegmentation()([sample]), torch.Generator())
    assert np.array_equal(made.labels[0].numpy(), RECORDED[f"seg{case}_labels"])
    # Theirs is float32 from the same bytes.
    np.testing.assert_allclose(made.images[0].numpy(), RECORDED[f"seg{case}_image"], rtol=0, atol=1e-6)
    assert bool((made.labels == 255).any()) == (step == 0), "the smallest scale is padded"


def test_faces_are_cropped_like_whole_pixels_resized() -> None:
    """Where the box has whole pixels; the authors round other boxes, which moves the crop beside its targets."""
    from PIL import Image

    from hrnet_fast.tasks.images import crop

    picture = pattern(60, 80)
    box = (10.0, 8.0, 32.0, 32.0)
    points, visible = torch.zeros(3, 2), torch.ones(3)
    face = datasets.KeypointSample(torch.from_numpy(picture), points, visible, torch.tensor(box), "", "")
    crops = datasets.KeypointCrops((64, 64), (16, 16), "face", 1.5, padding=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    made = crops(datasets.collate_keypoints([face])).images[0].permute(1, 2, 0) * 255
    expected = torch.from_numpy(np.array(crop(Image.fromarray(picture), box, (64, 64), "face"))).float()
    inside = slice(1, -1)  # resizing repeats the crop's outermost pixels
    assert (made - expected)[inside, inside].abs().max() <= 5  # positions of 1/32 pixel
    assert (made - expected)[inside, inside].abs().mean() < 0.6
