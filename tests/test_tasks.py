"""From images to answers: coordinates, flips and crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hrnet_fast import HRNet, InputError
from hrnet_fast.tasks import TASKS, Options
from hrnet_fast.tasks.heatmaps import COCO_FLIP, COCO_KEYPOINTS, COCO_SKELETON, decode, flip_back, to_image
from hrnet_fast.tasks.images import MEAN, STD, crop, find_images, fit_box, read_image, to_tensor


def test_decode_moves_a_quarter_towards_the_higher_neighbour() -> None:
    maps = torch.zeros(3, 8, 6)
    maps[0, 4, 2], maps[0, 4, 3], maps[0, 3, 2] = 1.0, 0.5, 0.2  # right and up
    maps[1, 0, 5] = 2.0  # a corner stays
    maps[2, 5, 3] = 3.0  # no preference stays
    points, values = decode(maps)
    assert points.tolist() == [[2.25, 3.75], [5.0, 0.0], [3.0, 5.0]]
    assert values.tolist() == [1.0, 2.0, 3.0]


def test_a_peak_maps_back_to_the_pixel_it_was_cropped_from() -> None:
    image = Image.new("RGB", (200, 120))
    image.putpixel((90, 50), (255, 255, 255))
    size, box = (64, 48), fit_box((60.0, 30.0, 50.0, 40.0), (64, 48))
    cropped = np.array(crop(image, box, size)).sum(axis=2)
    y, x = np.unravel_index(cropped.argmax(), cropped.shape)
    (found,) = to_image(torch.tensor([[float(x), float(y)]]), size, box)
    assert torch.allclose(found, torch.tensor([90.0, 50.0]), atol=1.5 * box[2] / 48)


def test_fit_box_keeps_the_centre_and_takes_the_aspect() -> None:
    left, top, width, height = fit_box((10.0, 20.0, 30.0, 100.0), (256, 192), padding=1.25)
    assert (left + width / 2, top + height / 2) == (25.0, 70.0)
    assert width / height == pytest.approx(192 / 256)
    assert height == pytest.approx(125.0)
    with pytest.raises(InputError, match="positive"):
        fit_box((0.0, 0.0, 0.0, 5.0), (256, 192))


def test_flip_back_undoes_a_mirroring() -> None:
    assert [COCO_FLIP[COCO_FLIP[i]] for i in range(17)] == list(range(17))
    for i, j in enumerate(COCO_FLIP):
        assert COCO_KEYPOINTS[i].replace("left", "x").replace("right", "x") == COCO_KEYPOINTS[j].replace(
            "left", "x"
        ).replace("right", "x")
    assert {i for bone in COCO_SKELETON for i in bone} == set(range(17))
    maps = torch.randn(2, 17, 4, 3)
    assert torch.equal(flip_back(flip_back(maps, COCO_FLIP), COCO_FLIP), maps)


def test_to_tensor_normalises_rgb() -> None:
    x = to_tensor(Image.new("RGB", (5, 4), (255, 0, 0)))
    assert x.shape == (1, 3, 4, 5)
    expected = torch.tensor([(1 - MEAN[0]) / STD[0], -MEAN[1] / STD[1], -MEAN[2] / STD[2]])
    assert torch.allclose(x[0, :, 0, 0], expected)


def test_read_image_turns_upright_and_refuses_rubbish(tmp_path: Path) -> None:
    upright = Image.new("RGB", (6, 4))
    exif = upright.getexif()
    exif[0x0112] = 6  # rotated by a quarter turn
    upright.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (4, 6)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG....")
    with pytest.raises(InputError, match=r"bad\.png"):
        read_image(tmp_path / "bad.png")
    with pytest.raises(InputError, match="no such image"):
        read_image(tmp_path / "none.png")
    assert [p.name for p in find_images(tmp_path)] == ["bad.png", "turned.jpg"]


@pytest.fixture(scope="module")
def pose() -> HRNet:
    torch.manual_seed(3)
    options = {"num_blocks": 1, "num_modules": (1, 1, 1), "stage1_blocks": 1, "stage1_channels": 8}
    return HRNet(width=8, head="v1", num_outputs=17, init="kaiming", **options).eval()


def test_flip_averages_with_the_mirrored_image(pose: HRNet) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    x = to_tensor(image)
    with torch.inference_mode():
        both = (pose(x) + flip_back(pose(x.flip(-1)), COCO_FLIP)) / 2
    points, scores = decode(both[0])
    predict = TASKS["pose"].predict
    answer = predict(pose, image, Options(size=(64, 32), flip=True)).data["people"][0]["keypoints"]
    expected = to_image(points, (16, 8), (0.0, 0.0, 32.0, 64.0))
    for keypoint, (px, py), score in zip(answer, expected.tolist(), scores.tolist(), strict=True):
        assert (keypoint["x"], keypoint["y"]) == (round(px, 2), round(py, 2))
        assert keypoint["score"] == round(score, 5)


def test_every_box_is_answered(pose: HRNet) -> None:
    image = Image.new("RGB", (100, 80), (120, 90, 30))
    predict = TASKS["pose"].predict
    boxes = ((0.0, 0.0, 30.0, 60.0), (50.0, 10.0, 40.0, 60.0))
    found = predict(pose, image, Options(size=(64, 64), boxes=boxes, threshold=-1e9))
    assert len(found.data["people"]) == 2
    assert found.picture.tobytes() != image.tobytes()
    hidden = predict(pose, image, Options(size=(64, 64), boxes=boxes, threshold=1e9))
    assert hidden.picture.tobytes() == image.tobytes()


def test_a_network_of_another_kind_is_refused(pose: HRNet) -> None:
    image = Image.new("RGB", (64, 64))
    for task in ("classification",):
        predict = TASKS[task].predict
        with pytest.raises(InputError, match="take a classification checkpoint"):
            predict(pose, image, Options(size=(64, 64)))
