"""Boxes, points and matrices between images and inputs."""

from __future__ import annotations

import pytest
import torch

from hrnet_fast.errors import InputError
from hrnet_fast.keypoints import METHODS, decode_keypoints, encode_keypoints, fit_box, to_image, to_input, warp_matrix


def test_fit_box_keeps_the_centre_and_takes_the_aspect() -> None:
    left, top, width, height = fit_box((10.0, 20.0, 30.0, 100.0), (256, 192), padding=1.25)
    assert (left + width / 2, top + height / 2) == (25.0, 70.0)
    assert width / height == pytest.approx(192 / 256)
    assert height == pytest.approx(125.0)
    with pytest.raises(InputError, match="positive"):
        fit_box((0.0, 0.0, 0.0, 5.0), (256, 192))


# Of the box (20, 30, 150, 200), input 256x192 (H, W) and rotations by 0 and 30 degrees: the authors'
# get_affine_transform with centre (95, 130) and scale (0.75, 1), and mmpose's get_udp_warp_matrix.
MATRICES = {
    ("msra", 0): [[1.28, 0.0, -25.6], [0.0, 1.28, -38.4]],
    ("msra", 30): [[1.1085125168, 0.64, -92.5086890981], [-0.64, 1.1085125168, 44.6933728130]],
    ("udp", 0): [[1.2733333333, 0.0, -25.4666666667], [0.0, 1.275, -38.25]],
    ("udp", 30): [[1.1027390141, -0.6366666667, 73.5064603], [0.6375, 1.1041823898, -76.6062106713]],
}


@pytest.mark.parametrize(("method", "rotation"), MATRICES)
def test_matrices_are_the_upstreams(method: str, rotation: float) -> None:
    found = warp_matrix((20.0, 30.0, 150.0, 200.0), (256, 192), method, rotation)
    torch.testing.assert_close(found, torch.tensor(MATRICES[method, rotation], dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_centre_goes_to_half_the_size(method: str) -> None:
    box = (20.0, 30.0, 150.0, 200.0)
    for rotation in (0.0, 77.0):
        centre = warp_matrix(box, (256, 192), method, rotation) @ torch.tensor([95.0, 130.0, 1.0], dtype=torch.float64)
        half = torch.tensor([95.5, 127.5] if method == "udp" else [96.0, 128.0], dtype=torch.float64)
        torch.testing.assert_close(centre, half)


@pytest.mark.parametrize("method", METHODS)
def test_points_follow_the_matrix(method: str) -> None:
    boxes = torch.tensor([[20.0, 30.0, 150.0, 200.0], [-5.0, 7.5, 75.0, 100.0]])
    points = torch.tensor([[[20.0, 30.0], [100.0, 77.0]], [[0.0, 10.0], [69.5, 107.0]]])
    found = to_input(points, boxes, (256, 192), method)
    for box, given, mapped in zip(boxes.tolist(), points, found, strict=True):
        matrix = warp_matrix((box[0], box[1], box[2], box[3]), (256, 192), method).float()
        torch.testing.assert_close(given @ matrix[:, :2].T + matrix[:, 2], mapped, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("method", "heatmap_pixels"), [("msra", 0.51), ("face", 0.51), ("dark", 0.02), ("udp", 0.02)])
def test_from_the_image_and_back(method: str, heatmap_pixels: float) -> None:
    """Box, target, decoding and box again: where a network that has learnt its targets puts a keypoint."""
    box = torch.tensor([[20.0, 30.0, 150.0, 200.0]])
    points = torch.tensor([[[70.0, 100.0], [95.3, 130.9], [120.7, 160.2]]])
    targets, _ = encode_keypoints(to_input(points, box, (256, 192), method), None, (256, 192), (64, 48), method)
    decoded, _ = decode_keypoints(targets, (256, 192), method)
    assert (to_image(decoded, box, (256, 192)) - points).abs().max() < heatmap_pixels * 150 / 48


def test_boxes_that_do_not_fit() -> None:
    points = torch.zeros(2, 3, 2)
    for boxes in (torch.zeros(4), torch.zeros(1, 4), torch.zeros(2, 5)):
        with pytest.raises(InputError, match=r"\[N, 4\]"):
            to_image(points, boxes, (256, 192))
        with pytest.raises(InputError, match=r"\[N, 4\]"):
            to_input(points, boxes, (256, 192))
    with pytest.raises(InputError, match="positive"):
        warp_matrix((0.0, 0.0, 1.0, 0.0), (256, 192))
    with pytest.raises(InputError, match="msra, dark, udp, face"):
        warp_matrix((0.0, 0.0, 1.0, 1.0), (256, 192), "simcc")
    with pytest.raises(InputError, match="input_size"):
        to_image(points, torch.zeros(2, 4), (256, 192, 3))
