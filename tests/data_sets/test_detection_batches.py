"""Inputs of detectors: sizes, mirrored boxes and masks, normalisation, and the random numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from made_files import pattern
from tiny_detectors import tiny_detector_config

from hrnet_fast.datasets import ColorAugmentation, DetectionSample, SkippedSample, collate_detection
from hrnet_fast.detection.detector_config import PictureConfig
from hrnet_fast.detection.pictures import prepare
from hrnet_fast.detection.training_inputs import DetectionScaling
from hrnet_fast.errors import InputError

SIZES = ((40, 60), (50, 32))
SMALL = PictureConfig(long_side=96, short_side=64)


def sample(index: int, boxes: list[list[float]], *, masks: bool = True) -> DetectionSample:
    """A picture whose objects' masks fill their boxes."""
    height, width = SIZES[index]
    found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    filled = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(filled, found.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    image = torch.from_numpy(pattern(height, width, index))
    labels = torch.arange(len(boxes))
    crowd = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    semantic = torch.full((height, width), index, dtype=torch.uint8)
    return DetectionSample(image, found, labels, crowd, f"{index}.png", "", index, filled if masks else None, semantic)


SAMPLES = (sample(0, [[10, 4, 30, 24], [40, 20, 60, 40]]), sample(1, []))


def made(samples: Any = SAMPLES, seed: int = 0, **options: Any) -> Any:
    batch = collate_detection(samples)
    return DetectionScaling(**({"picture": SMALL} | options))(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_and_masks_stay_together(flip: float) -> None:
    found = made(flip_probability=flip)
    assert [meta.size for meta in found.metas] == [(64, 96), (96, 61)]
    assert found.images.shape == (2, 3, 96, 96)
    target, empty = found.targets
    left = [16.0, 64.0] if not flip else [48.0, 0.0]
    assert target.boxes[:, 0].tolist() == pytest.approx(left)
    assert (target.boxes[:, 2] - target.boxes[:, 0]).tolist() == pytest.approx([32, 32])
    assert target.labels.tolist() == [0, 1]
    assert target.ignored[0].tolist() == pytest.approx([0, 0, 12.8, 12.8] if not flip else [83.2, 0, 96, 12.8])
    for mask, box in zip(target.masks, target.boxes, strict=True):
        rows, columns = mask.nonzero().unbind(1)
        ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert [int(end) for end in ends] == pytest.approx(box.tolist(), abs=1)
    assert (empty.boxes.shape, empty.masks.shape) == ((0, 4), (0, 96, 96))
    assert target.semantic.unique().tolist() == [0, 255]
    assert bool((empty.semantic[:96, :61] == 1).all())


def test_maps_are_scaled_and_then_mirrored() -> None:
    """As in mmdetection: to the pixel the mirrored image of the map that cv2.resize would give (INTER_NEAREST)."""
    generator = torch.Generator().manual_seed(0)
    samples = [
        dataclasses.replace(
            one,
            masks=torch.randint(2, (len(one.boxes), *size), generator=generator).byte(),
            semantic=torch.randint(200, size, generator=generator).byte(),
        )
        for one, size in zip(SAMPLES, SIZES, strict=True)
    ]
    found = made(samples, flip_probability=1.0)
    for one, target, meta in zip(samples, found.targets, found.metas, strict=True):
        rows, columns = (
            np.minimum(np.floor(np.arange(there) * (here / there)).astype(int), here - 1)
            for here, there in zip(one.image.shape[:2], meta.size, strict=True)
        )
        height, width = meta.size
        for given, maps, outside in ((one.masks, target.masks, 0), (one.semantic[None], target.semantic[None], 255)):
            expected = given.numpy()[:, rows][:, :, columns][:, :, ::-1]
            assert np.array_equal(maps[:, :height, :width].numpy(), expected)
            assert bool((maps[:, height:] == outside).all())
            assert bool((maps[:, :, width:] == outside).all())


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pictures_are_those_of_prediction(order: str) -> None:
    """Within a grey level, padding included."""
    picture = PictureConfig(long_side=96, short_side=64, channel_order=order, mean=(10, 20, 30), std=(1, 2, 4))
    images, metas = prepare([one.image for one in SAMPLES], picture, torch.zeros(1))
    found = made(picture=picture, flip_probability=0)
    assert found.metas == metas
    assert bool(((found.images - images).abs() <= 1.01 / torch.tensor(picture.std)[:, None, None]).all())
    assert bool((found.images[1, :, :, 61:] == 0).all())


def test_sizes_are_drawn() -> None:
    def sizes(**options: Any) -> set[int]:
        return {min(made(seed=seed, **options).metas[0].size) for seed in range(40)}

    scales = ((200, 32), (200, 48))
    assert sizes(scales=scales) == {32, 48}
    drawn = sizes(scales=scales, sampling="range")
    assert drawn <= set(range(32, 49))
    assert len(drawn) > 10
    first, again = (made(seed=3, scales=scales, colors=ColorAugmentation(brightness=0.5)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, made(seed=4, scales=scales, colors=ColorAugmentation(brightness=0.5)).images)


def test_batches_without_masks_or_pictures() -> None:
    skipped = SkippedSample("x.png", "", "broken")
    batch = collate_detection([skipped, sample(0, [[1, 1, 9, 9]], masks=False)])
    assert (len(batch), batch.skipped, batch.masks) == (1, (skipped,), None)
    assert torch.equal(batch.pictures()[0], torch.from_numpy(pattern(40, 60)))
    assert len(collate_detection([skipped])) == 0
    moved = batch.to("cpu")
    assert moved.boxes.tolist() == [[1, 1, 9, 9]]
    assert DetectionScaling(SMALL)(moved, torch.Generator()).targets[0].masks is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"picture": tiny_detector_config("fcos")}, "accepted is a PictureConfig"),
        ({"sampling": "all"}, "accepted are 'list' and 'range'"),
        ({"scales": ((64,),)}, "accepted are pairs"),
        ({"scales": ((64, 32),), "sampling": "range"}, "accepted are two"),
        ({"flip_probability": 2}, "numbers from 0 to 1"),
        ({"colors": 1}, "accepted is a ColorAugmentation or None"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DetectionScaling(**options)
