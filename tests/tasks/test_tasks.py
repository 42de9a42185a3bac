"""Prediction from images: keypoints, boxes, masks and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import tiny

import hrnet_fast as hf
from hrnet_fast import HRNet, HRNetConfig, InputError
from hrnet_fast.keypoints import flip_back, to_image, to_input
from hrnet_fast.tasks import TASKS, Options
from hrnet_fast.tasks.images import MEAN, STD, crop, find_images, read_image, to_tensor

GOLDEN = Path(__file__).parents[1] / "golden" / "crops.npz"  # see tests/keypoints/golden_keypoints.py


@pytest.mark.parametrize("method", ["msra", "dark", "udp", "face"])
def test_crops_are_the_upstreams(method: str) -> None:
    """OpenCV's ``warpAffine`` with the authors' and UDP's matrices, and the face code's own function."""
    name = {"msra": "pose", "dark": "pose"}.get(method, method)
    with np.load(GOLDEN) as data:
        picture = Image.fromarray(data["picture"])
        boxes, expected = data["face_boxes" if method == "face" else "boxes"], data[name]
    height, width = expected.shape[1:3]
    for box, wanted in zip(boxes.tolist(), expected, strict=True):
        found = np.array(crop(picture, tuple(box), (height, width), method)).astype(int)
        # mmpose's matrix is float32, which rounds a few levels otherwise.
        assert np.abs(found - wanted).max() <= (method == "udp")
        assert (found != wanted).mean() < 0.001


@pytest.mark.parametrize("method", ["msra", "udp", "face"])
def test_a_picture_returns_to_the_pixel_it_was_cropped_from(method: str) -> None:
    """A joint's pixel, cropped by the method, is found where the method's points lead in the image."""
    box, size = (20.0, 10.0, 96.0, 128.0), (256, 192)
    if method == "face":
        box, size = (20.0, 10.0, 128.0, 128.0), (256, 256)
    image = Image.new("RGB", (200, 160))
    image.putpixel((90, 50), (255, 255, 255))
    cropped = torch.from_numpy(np.array(crop(image, box, size, method)).astype(np.float32)[..., 0])
    weights = cropped / cropped.sum()
    y = (weights.sum(1) * torch.arange(size[0])).sum()
    x = (weights.sum(0) * torch.arange(size[1])).sum()
    expected = to_input(torch.tensor([[[90.0, 50.0]]]), torch.tensor([box]), size, method)[0, 0]
    # The face code's crop shows everything half an input pixel, and half an image pixel at most, further on.
    apart = torch.tensor([x, y]) - expected
    assert apart.abs().max() <= (0.5 + 1.0 if method == "face" else 0.01)


def test_crops_beyond_the_image_are_black() -> None:
    image = Image.new("RGB", (20, 10), (200, 100, 50))
    for method in ("msra", "udp", "face"):
        assert not np.array(crop(image, (100.0, 100.0, 30.0, 40.0), (64, 48), method)).any()
        speck = np.array(crop(image, (-1e4, -1e4, 3e4, 3e4), (64, 64), method))
        assert speck.shape == (64, 64, 3)
        assert not speck[:20].any()
        assert not speck[24:].any()


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


@pytest.fixture(scope="module")
def face() -> HRNet:
    torch.manual_seed(4)
    options = {"num_blocks": 1, "num_modules": (1, 1, 1), "stage1_blocks": 1, "stage1_channels": 8}
    return HRNet(width=8, head="face", num_outputs=29, init="kaiming", **options).eval()


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8))


def expected_points(model: HRNet, image: Image.Image, method: str, pairs: str, size: tuple[int, int]) -> Any:
    box = (0.0, 0.0, float(image.width), float(image.height))
    x = to_tensor(crop(image, box, size, method))
    with torch.inference_mode():
        maps = model(x)
        if pairs:
            mirrored = flip_back(model(x.flip(-1)), pairs, shift=method in ("msra", "dark"))
            maps = (maps + mirrored) / 2
    points, scores = hf.decode_keypoints(maps, size, method)
    return to_image(points, torch.tensor([box]), size)[0].tolist(), scores[0].tolist()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("decode", [None, "msra", "dark", "udp", "face"])
@pytest.mark.parametrize("task", ["pose", "landmarks"])
def test_answers_are_decoded_as_asked(
    request: pytest.FixtureRequest, task: str, decode: str | None, flip: bool
) -> None:
    model: HRNet = request.getfixturevalue("pose" if task == "pose" else "face")
    name, group, part = ("coco", "people", "keypoints") if task == "pose" else ("cofw", "faces", "landmarks")
    image = photo(64, 64)
    data = TASKS[task].predict(model, image, Options(size=(64, 64), flip=flip, decode=decode)).data
    method = decode or ("msra" if task == "pose" else "face")
    assert data["decode"] == method
    assert data["flip"] == ({"pairs": name, "shift": method in ("msra", "dark")} if flip else None)
    points, scores = expected_points(model, image, method, name if flip else "", (64, 64))
    for keypoint, (px, py), score in zip(data[group][0][part], points, scores, strict=True):
        assert (keypoint["x"], keypoint["y"]) == pytest.approx((px, py), abs=0.011)
        assert keypoint["score"] == pytest.approx(score, abs=2e-5)


def test_a_joint_comes_back_where_it_was() -> None:
    """Of a network whose peak is where the authors' target has it, the joint at (100, 120) of the input is there."""

    class Learnt:
        config, family, keypoints = HRNetConfig.make(width=8, head="v1", num_outputs=17), "pose", "msra"

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            joints = torch.tensor([100.0, 120.0]).expand(len(x), 17, 2)
            return hf.encode_keypoints(joints, None, (256, 192), (64, 48))[0]

    answer = TASKS["pose"].predict(Learnt(), photo(192, 256), Options()).data["people"][0]["keypoints"]
    assert {(k["x"], k["y"]) for k in answer} == {(100.0, 120.0)}


def test_unknown_conventions_are_reported(pose: HRNet, face: HRNet) -> None:
    image = photo(64, 64)
    with pytest.raises(InputError, match="COCO's 17 and MPII's 16, and this network has 29"):
        TASKS["pose"].predict(face, image, Options(size=(64, 64), flip=True))
    with pytest.raises(InputError, match="this network has 17"):
        TASKS["landmarks"].predict(pose, image, Options(size=(64, 64), flip=True))
    with pytest.raises(InputError, match="msra, dark, udp, face"):
        TASKS["pose"].predict(pose, image, Options(size=(64, 64), decode="simcc"))


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


def test_every_box_is_cropped_and_answered_by_itself() -> None:
    class Learnt:
        """Answers what a network that has learnt to find (100, 120) of its input would."""

        config, family, keypoints = HRNetConfig.make(width=8, head="v1", num_outputs=17), "pose", "msra"

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            points = torch.tensor([100.0, 120.0]).expand(len(x), 17, 2)
            return hf.encode_keypoints(points, None, (256, 192), (64, 48))[0]

    boxes = ((10.0, 20.0, 30.0, 100.0), (50.0, 10.0, 90.0, 60.0))
    image = Image.new("RGB", (200, 160))
    people = TASKS["pose"].predict(Learnt(), image, Options(boxes=boxes)).data["people"]  # type: ignore[arg-type]
    # Boxes of 192:256 about the centres (25, 70) and (95, 40), a quarter larger than the given ones.
    crops = ((25 - 46.875, 70 - 62.5, 93.75, 125.0), (95 - 56.25, 40 - 75.0, 112.5, 150.0))
    for person, (x, y, w, h) in zip(people, crops, strict=True):
        found = person["keypoints"][0]
        assert (found["x"], found["y"]) == pytest.approx((x + w * 100 / 192, y + h * 120 / 256), abs=0.01)


@pytest.mark.parametrize("align", [False, True])
def test_segmentation_is_mirrored_back_and_upsampled_as_the_network_does(align: bool) -> None:
    model = tiny("v2", 5, align_corners=align)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    answer = TASKS["segmentation"].predict(model, image, Options(size=(64, 96), flip=True))
    x = to_tensor(image.resize((96, 64), Image.Resampling.BILINEAR))
    with torch.no_grad():
        logits = (model(x) + model(x.flip(3)).flip(3)) / 2
    full = torch.nn.functional.interpolate(logits, (50, 70), mode="bilinear", align_corners=align)
    assert np.array_equal(np.array(answer.maps["labels"]), full[0].argmax(0).numpy())


def test_classes_are_averaged_over_the_mirror_image() -> None:
    """The centre 224 of 256 pixels are neither resized nor moved, so the mirrored picture has the same answer."""
    model = tiny("c", 7)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8))
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def scores(picture: Image.Image, flip: bool) -> list[float]:
        return [c["score"] for c in TASKS["classification"].predict(model, picture, Options(flip=flip)).data["classes"]]

    assert scores(image, True) == pytest.approx(scores(mirrored, True), abs=2e-6)
    assert scores(image, False) != pytest.approx(scores(mirrored, False), abs=2e-6)


def test_lips_classes_are_not_mirrored_without_their_pairs() -> None:
    with pytest.raises(InputError, match="LIP"):
        TASKS["segmentation"].predict(tiny("v2", 20), Image.new("RGB", (64, 64)), Options(flip=True))


def test_pictures_of_sixteen_bits_are_scaled_without_read_image() -> None:
    grey = Image.fromarray(np.full((64, 64), 40000, dtype=np.uint16))
    answers = [
        TASKS["classification"].predict(tiny("c", 7), image, Options(size=(64, 64))).data
        for image in (grey, Image.new("L", (64, 64), round(40000 / 257)))
    ]
    assert answers[0] == answers[1]
