"""``decode_keypoints`` against what the upstreams' code gave, and at the edges of what it accepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_keypoints import golden
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.errors import InputError
from hrnet_fast.keypoints import METHODS, to_image

MMPOSE = {"msra": "mmpose_msra", "dark": "mmpose_msra_dark", "udp": "mmpose_udp"}


@pytest.mark.parametrize("method", MMPOSE)
def test_points_and_values_are_mmposes(method: str) -> None:
    data = golden("coordinates")
    points, values = hf.decode_keypoints(data["pose_heatmaps"], (256, 192), method=method)
    assert points.shape == (3, 17, 2)
    assert points.dtype == values.dtype == torch.float32
    expected = data[f"{MMPOSE[method]}_points"].float()
    assert (points - expected).abs().max() < 1e-3  # of pixels
    assert torch.equal(values, data[f"{MMPOSE[method]}_values"])


def test_points_are_the_authors_in_the_image() -> None:
    data = golden("coordinates")
    points, values = hf.decode_keypoints(data["pose_heatmaps"], (256, 192))
    size = 200 * data["pose_scale"]
    boxes = torch.cat([data["pose_center"] - size / 2, size], dim=1)
    found = to_image(points, boxes, (256, 192))
    seen = values > 0
    assert (found - data["authors_pose_points"])[seen].abs().max() < 1e-3
    assert torch.equal(values, data["authors_pose_values"][..., 0])
    # Nowhere positive: the authors say pixel (0, 0), mmpose (-1, -1).
    assert (~seen).nonzero().tolist() == [[0, 1]]
    assert points[0, 1].tolist() == [-4.0, -4.0]


def test_faces_are_the_authors_in_the_image() -> None:
    data = golden("coordinates")
    points, _ = hf.decode_keypoints(data["face_heatmaps"], (256, 256), method="face")
    size = 200 * data["face_scale"][:, None].expand(2, 2)
    found = to_image(points, torch.cat([data["face_center"] - size / 2, size], dim=1), (256, 256))
    # The authors make whole pixels of them, counted from 1.
    assert torch.equal(found.trunc() + 1, data["authors_face_points"])


@pytest.mark.parametrize(
    ("method", "name"), [("msra", "pose"), ("dark", "mmpose_dark"), ("udp", "mmpose_udp"), ("face", "face")]
)
def test_borders(method: str, name: str) -> None:
    data = golden("keypoints")
    maps = data["face_heatmaps" if method == "face" else "heatmaps"]
    h, w = maps.shape[2:]
    points, values = hf.decode_keypoints(maps, (4 * h, 4 * w), method=method)
    expected = data[f"{name}_points"].float()
    if method == "face":
        expected = 4 * (expected - 1)
    elif method == "msra":
        expected = torch.where(values[..., None] > 0, expected, -4.0)
    # Of maps that are nowhere positive, UDP's refinement reads beside the map.
    compared = values > 0 if method == "udp" else torch.ones_like(values, dtype=torch.bool)
    assert (points - expected)[compared].abs().max() < 1e-3


def test_mmpose_refines_along_the_border_as_well() -> None:
    """The one difference of mmpose's MSRA where something is positive: rows and columns beside the border."""
    data = golden("keypoints")
    points, _ = hf.decode_keypoints(data["heatmaps"], (64, 48))
    x, y = data["heatmaps"].flatten(2).argmax(dim=2) % 12, data["heatmaps"].flatten(2).argmax(dim=2) // 12
    inner = (x > 1) & (x < 11) & (y > 1) & (y < 15)
    apart = (points - data["mmpose_msra_points"]).abs().amax(dim=2)
    assert apart[inner].max() < 1e-3
    assert apart[~inner].max() == 1.0


def peaks(*, dtype: torch.dtype = torch.float32) -> Tensor:
    """Two peaks in heatmaps [1, 2, 16, 12], one between pixels."""
    x, y = torch.arange(12.0), torch.arange(16.0)[:, None]
    centres = ((5.0, 8.0), (4.3, 9.2))
    return torch.stack([torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in centres])[None].to(dtype)


@pytest.mark.parametrize("method", METHODS)
def test_the_peak_itself(method: str) -> None:
    points, values = hf.decode_keypoints(peaks(), (64, 48), method)
    expected = {
        "msra": [[20.0, 32.0], [17.0, 37.0]],
        "face": [[22.0, 34.0], [19.0, 39.0]],
        "dark": [[20.0, 32.0], [17.2, 36.8]],
        "udp": [[5 / 11 * 48, 8 / 15 * 64], [4.3 / 11 * 48, 9.2 / 15 * 64]],
    }[method]
    # The blur's cut at the borders moves a summit by hundredths.
    atol = 0.1 if method in ("dark", "udp") else 1e-5
    torch.testing.assert_close(points[0], torch.tensor(expected), atol=atol, rtol=0)
    torch.testing.assert_close(values, peaks().amax((2, 3)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(method: str, dtype: torch.dtype) -> None:
    maps = peaks(dtype=dtype).requires_grad_()
    points, values = hf.decode_keypoints(maps, (64, 48), method)
    out = torch.float64 if dtype == torch.float64 else torch.float32
    assert points.dtype == values.dtype == out
    assert not points.requires_grad
    assert not values.requires_grad
    plain, high = hf.decode_keypoints(maps.detach().to(out), (64, 48), method)
    assert torch.equal(points, plain)
    assert torch.equal(values, high)
    near, _ = hf.decode_keypoints(peaks(), (64, 48), method)
    torch.testing.assert_close(points.float(), near, atol=1e-4 if dtype == torch.float64 else 1.01, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_layouts_and_batches(method: str) -> None:
    maps = golden("keypoints")["heatmaps"]
    points, values = hf.decode_keypoints(maps, (64, 48), method)
    strided = maps.to(memory_format=torch.channels_last)
    assert torch.equal(hf.decode_keypoints(strided, (64, 48), method)[0], points)
    one, high = hf.decode_keypoints(maps[1:2, 3:4], torch.Size((64, 48)), method)
    torch.testing.assert_close(one[0, 0], points[1, 3])
    assert high[0, 0] == values[1, 3]
    for shape in ((0, 5, 16, 12), (2, 0, 16, 12)):
        points, values = hf.decode_keypoints(torch.zeros(shape), (64, 48), method)
        assert points.shape == (*shape[:2], 2)
        assert values.shape == shape[:2]


@pytest.mark.parametrize("method", METHODS)
def test_nan_is_reported(method: str) -> None:
    maps = peaks().repeat(2, 1, 1, 1)
    maps[0, 1, 3, 4] = float("nan")
    points, values = hf.decode_keypoints(maps, (64, 48), method)
    assert values[0, 1].isnan()
    assert points[0, 1].isnan().all()
    others = torch.tensor([[True, False], [True, True]])
    assert points[others].isfinite().all()
    assert torch.equal(points[1], hf.decode_keypoints(peaks(), (64, 48), method)[0][0])


@pytest.mark.parametrize("method", METHODS)
def test_masked_pixels_count_as_low(method: str) -> None:
    maps = peaks()
    points, values = hf.decode_keypoints(maps, (64, 48), method)
    maps[..., :2] = float("-inf")
    masked, high = hf.decode_keypoints(maps, (64, 48), method)
    assert torch.equal(high, values)
    torch.testing.assert_close(masked, points, atol=4.0, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_positive_lies_outside(method: str) -> None:
    maps = torch.stack([torch.zeros(16, 12), torch.full((16, 12), -2.0), torch.full((16, 12), float("-inf"))])[None]
    points, values = hf.decode_keypoints(maps, (64, 48), method)
    assert (points < 0).all()
    assert values.tolist() == [[0.0, -2.0, float("-inf")]]


def test_of_equal_maxima_the_first() -> None:
    maps = torch.zeros(1, 1, 16, 12)
    maps[0, 0, 5, 7] = maps[0, 0, 5, 4] = maps[0, 0, 9, 4] = 1.0
    assert hf.decode_keypoints(maps, (64, 48))[0].tolist() == [[[16.0, 20.0]]]


def test_strides_follow_the_sizes() -> None:
    maps = torch.zeros(1, 1, 10, 20)
    maps[0, 0, 4, 6] = 1.0
    assert hf.decode_keypoints(maps, (30, 40))[0].tolist() == [[[12.0, 12.0]]]


BAD: list[tuple[Any, Any, Any, str]] = [
    (torch.zeros(17, 64, 48), (256, 192), "msra", r"\[17, 64, 48\]"),
    (torch.zeros(1, 17, 64, 48, dtype=torch.uint8), (256, 192), "msra", "uint8"),
    ([[1.0]], (256, 192), "msra", "list"),
    (torch.zeros(1, 17, 0, 48), (256, 192), "msra", "at least 1"),
    (torch.zeros(1, 17, 64, 1), (256, 192), "udp", "at least 2"),
    (torch.zeros(1, 17, 64, 48), (256,), "msra", "input_size"),
    (torch.zeros(1, 17, 64, 48), 256, "msra", "input_size"),
    (torch.zeros(1, 17, 64, 48), (256, 191.5), "msra", "input_size"),
    (torch.zeros(1, 17, 64, 48), (256, 0), "msra", "input_size"),
    (torch.zeros(1, 17, 64, 48), (256, 192), "megvii", "msra, dark, udp, face"),
    (torch.zeros(1, 17, 64, 48), (256, 192), None, "msra, dark, udp, face"),
]


@pytest.mark.parametrize(("maps", "size", "method", "says"), BAD)
def test_what_cannot_be_decoded(maps: Any, size: Any, method: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        hf.decode_keypoints(maps, size, method)
