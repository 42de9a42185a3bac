"""Crops and targets on CUDA, their host side: a batch is prepared without a wait for the device."""

from __future__ import annotations

import device_counters
import pytest
import torch

from hrnet_fast import datasets
from hrnet_fast.detection.detector_config import PictureConfig
from hrnet_fast.detection.training_inputs import DetectionScaling

pytestmark = pytest.mark.nulldevice
COLORS = datasets.ColorAugmentation(3, 0.2, 0.2, 0.2, 0.1)


def test_keypoints_are_prepared_without_waits() -> None:
    sample = datasets.KeypointSample(
        torch.zeros(40, 30, 3, dtype=torch.uint8),
        torch.ones(17, 2),
        torch.ones(17),
        torch.tensor([1.0, 2, 9, 9]),
        "",
        "",
    )
    batch = datasets.collate_keypoints([sample] * 4).pin_memory().to("cuda", non_blocking=True)
    crops = datasets.KeypointCrops(
        (64, 48), (16, 12), augmentation=datasets.BoxAugmentation(), colors=COLORS, flip_pairs=((1, 2),),
        upper_body=range(11), keypoint_weights=[1.0] * 17,
    )  # fmt: skip
    with device_counters.counting() as n:
        made = crops(batch, torch.Generator())
    assert (n.errors, n.synchronizations, n.to_host) == (0, 0, 0)
    assert made.images.device.type == made.targets.device.type == "cuda"


@pytest.mark.parametrize("stretch", [False, True])
def test_segmentation_is_prepared_without_waits(stretch: bool) -> None:
    pixels = torch.zeros(40, 30, 3, dtype=torch.uint8)
    batch = datasets.CollateSegmentation()([datasets.SegmentationSample(pixels, pixels[..., 0], "", "")] * 2)
    batch = batch.pin_memory().to("cuda", non_blocking=True)
    crops = datasets.SegmentationCrops(
        (32, 32), 40, stretch=stretch, flip_first=stretch, colors=COLORS, swapped_classes=((1, 2),)
    )
    with device_counters.counting() as n:
        made = crops(batch, torch.Generator())
    assert (n.errors, n.synchronizations, n.to_host) == (0, 0, 0)
    assert made.images.device.type == made.labels.device.type == "cuda"


def test_objects_are_prepared_without_waits() -> None:
    pixels, masks = torch.zeros(40, 30, 3, dtype=torch.uint8), torch.ones(2, 40, 30, dtype=torch.uint8)
    boxes = torch.tensor([[1.0, 2, 9, 9], [3, 4, 20, 30]])
    sample = datasets.DetectionSample(pixels, boxes, torch.tensor([0, 1]), boxes[:1], "", "", 0, masks, masks[0])
    batch = datasets.collate_detection([sample] * 2).pin_memory().to("cuda", non_blocking=True)
    scaling = DetectionScaling(PictureConfig(64, 48), ((64, 32), (80, 48)), "range", colors=COLORS)
    with device_counters.counting() as n:
        made = scaling(batch, torch.Generator())
    assert (n.errors, n.synchronizations, n.to_host) == (0, 0, 0)
    for one in (made.images, made.targets[1].boxes, made.targets[1].masks, made.targets[1].semantic):
        assert one is not None
        assert one.device.type == "cuda"
