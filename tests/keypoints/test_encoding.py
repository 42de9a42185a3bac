"""``encode_keypoints`` against the upstreams' targets, to the last bit, and back through ``decode_keypoints``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_keypoints import golden
from hypothesis import given
from hypothesis import strategies as st

import hrnet_fast as hf
from hrnet_fast.errors import InputError
from hrnet_fast.keypoints import METHODS

MMPOSE = {"msra": "mmpose_msra", "dark": "mmpose_msra_dark", "udp": "mmpose_udp"}


@pytest.mark.parametrize(
    ("method", "name"), [*MMPOSE.items(), ("msra", "authors_pose")], ids=[*MMPOSE.values(), "authors_pose"]
)
def test_targets_are_the_upstreams(method: str, name: str) -> None:
    data = golden("coordinates")
    targets, weights = hf.encode_keypoints(data["target_joints"][None], torch.ones(1, 8), (256, 192), (64, 48), method)
    assert targets.dtype == weights.dtype == torch.float32
    assert torch.equal(targets[0], data[f"{name}_target"])
    assert torch.equal(weights[0], data[f"{name}_target_weight"].flatten())


@pytest.mark.parametrize("sigma", [1.5, 2, 3])
@pytest.mark.parametrize(("method", "name"), [("msra", "pose"), ("dark", "dark"), ("udp", "udp")])
def test_borders_and_other_sigmas(method: str, name: str, sigma: float) -> None:
    data, key = golden("keypoints"), str(sigma).replace(".", "_")
    targets, weights = hf.encode_keypoints(data["joints"][None], None, (64, 48), (16, 12), method, sigma)
    assert torch.equal(targets[0], data[f"{name}_target_{key}"])
    assert torch.equal(weights[0], data[f"{name}_weight_{key}"])


@pytest.mark.parametrize(("index", "sigma"), [(0, 1.5), (1, 1.0)])
def test_faces(index: int, sigma: float) -> None:
    data = golden("crops")
    points = data["face_target_points"][None]
    targets, weights = hf.encode_keypoints(points, None, (256, 256), (64, 64), "face", sigma)
    assert torch.equal(targets[0], data["face_targets"][index])
    assert torch.equal(weights[0], (data["face_targets"][index].amax((1, 2)) > 0).float())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_seen(method: str) -> None:
    points = torch.tensor([[[20.0, 30.0]] * 5])
    for visible in (torch.tensor([[1.0, 0.0, 0.7, 0.3, 2.0]]), torch.tensor([[True, False, True, False, True]])):
        targets, weights = hf.encode_keypoints(points, visible, (64, 48), (16, 12), method)
        assert torch.equal(weights, visible.float())
        assert (targets.amax((2, 3)) > 0.5).tolist() == [[True, False, True, False, True]]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_place(method: str) -> None:
    far = [
        [float("nan"), 5.0],
        [5.0, float("nan")],
        [float("inf"), 5.0],
        [5.0, float("-inf")],
        [1e30, 5.0],
        [-500.0, 5.0],
    ]
    targets, weights = hf.encode_keypoints(torch.tensor([far]), None, (64, 48), (16, 12), method)
    assert not targets.any()
    assert not weights.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_other_dtypes_of_points(method: str, dtype: torch.dtype) -> None:
    points = torch.tensor([[[20, 30], [4, 60], [47, 0]]])
    exact, _ = hf.encode_keypoints(points.float(), None, (64, 48), (16, 12), method)
    targets, weights = hf.encode_keypoints(points.to(dtype), None, (64, 48), (16, 12), method)
    assert targets.dtype == weights.dtype == torch.float32
    assert torch.equal(targets, exact)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 17), (3, 0)])
def test_empty(method: str, shape: tuple[int, int]) -> None:
    targets, weights = hf.encode_keypoints(torch.zeros(*shape, 2), torch.ones(shape), (64, 48), (16, 12), method)
    assert targets.shape == (*shape, 16, 12)
    assert weights.shape == shape


# How far a point may come back from where it was, in input pixels of stride 4. MSRA rounds to a heatmap pixel; the face
# code truncates and adds a half. UDP comes back in mmpose's scale, in which a box's width is W pixels, not W - 1.
APART = {"msra": 2.0, "face": 2.0, "dark": 0.05, "udp": 0.05}


@pytest.mark.parametrize("method", METHODS)
@given(x=st.floats(48, 144), y=st.floats(48, 208))
def test_a_point_comes_back(method: str, x: float, y: float) -> None:
    targets, _ = hf.encode_keypoints(torch.tensor([[[x, y]]]), None, (256, 192), (64, 48), method)
    points, values = hf.decode_keypoints(targets, (256, 192), method)
    back = points[0, 0]
    if method == "udp":
        back = back * torch.tensor([191 / 192, 255 / 256])
    assert (back - torch.tensor([x, y])).abs().max() <= APART[method] + 1e-4
    assert 0.5 < values[0, 0] <= 1


@pytest.mark.parametrize("method", METHODS)
def test_points_come_back_without_a_bias(method: str) -> None:
    """All places between heatmap pixels alike: the median of what comes back is what went in."""
    offsets = torch.arange(0.125, 4, 0.25)
    points = torch.stack(torch.meshgrid(96 + offsets, 120 + offsets, indexing="xy"), dim=-1).reshape(1, -1, 2)
    targets, _ = hf.encode_keypoints(points, None, (256, 192), (64, 48), method)
    back, _ = hf.decode_keypoints(targets, (256, 192), method)
    if method == "udp":
        back = back * torch.tensor([191 / 192, 255 / 256])
    # The even median is the lower of two values, an eighth of a pixel on either side of the middle.
    assert (back - points)[0].median(dim=0).values.abs().max() <= 0.126


def test_a_joint_that_msra_rounds_to_itself_comes_back() -> None:
    targets, _ = hf.encode_keypoints(torch.tensor([[[100.0, 120.0]]]), None, (256, 192), (64, 48))
    assert hf.decode_keypoints(targets, (256, 192))[0].tolist() == [[[100.0, 120.0]]]


@pytest.mark.no_cover
@pytest.mark.slow
def test_without_a_graph_break() -> None:
    """Targets can be made inside a compiled or captured step: nothing waits for a value."""
    points = golden("keypoints")["joints"][None]
    for method in METHODS:

        def make(points: torch.Tensor, method: str = method) -> torch.Tensor:
            targets, _ = hf.encode_keypoints(points, None, (64, 48), (16, 12), method)
            return hf.decode_keypoints(targets, (64, 48), method)[0]

        compiled = torch.compile(make, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(points), make(points), equal_nan=True)


P = torch.zeros(2, 3, 2)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"points": torch.zeros(3, 2)}, r"\[3, 2\]"),
    ({"points": torch.zeros(2, 3, 3)}, r"\[2, 3, 3\]"),
    ({"points": [[1, 2]]}, "list"),
    ({"points": P.to(torch.complex64)}, "complex64"),
    ({"visible": torch.ones(2, 4)}, r"\[2, 4\].*\[2, 3\]"),
    ({"visible": [1, 1, 1]}, "list"),
    ({"heatmap_size": (16,)}, "heatmap_size"),
    ({"heatmap_size": (16, 1), "method": "udp"}, "at least 2"),
    ({"input_size": (64, -48)}, "input_size"),
    ({"method": "gaussian"}, "msra, dark, udp, face"),
    ({"sigma": 0}, "sigma"),
    ({"sigma": float("nan")}, "sigma"),
    ({"sigma": 1e300}, "sigma"),
    ({"sigma": "2"}, "sigma"),
]


@pytest.mark.parametrize(("changed", "says"), BAD)
def test_what_cannot_be_encoded(changed: dict[str, Any], says: str) -> None:
    options = {"points": P, "visible": None, "input_size": (64, 48), "heatmap_size": (16, 12)} | changed
    with pytest.raises(InputError, match=says):
        hf.encode_keypoints(**options)
