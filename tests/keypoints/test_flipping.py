"""Mirrored maps against the authors' mean, and every form of pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden_keypoints import golden

from hrnet_fast.errors import InputError
from hrnet_fast.keypoints import KEYPOINT_SETS, encode_keypoints, flip_back, mirror_order, needs_shift
from hrnet_fast.keypoints.decoding import decode_keypoints

COCO_INDEX = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]  # mmpose's flip_indices


def test_the_mean_is_the_authors() -> None:
    data = golden("coordinates")
    for pairs in ("coco", COCO_INDEX, [(i, i + 1) for i in range(1, 17, 2)]):
        back = flip_back(data["authors_flip_input"], pairs, shift=True)
        mean = (data["pose_heatmaps"] + back) * 0.5
        assert torch.equal(mean, data["authors_flip_shifted_mean"])


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 2), (3, 4)],
        ((2, 0), [4, 3]),
        [2, 1, 0, 4, 3],
        (2, 1, 0, 4, 3),
        torch.tensor([2, 1, 0, 4, 3]),
        np.array([2, 1, 0, 4, 3]),
        list(np.array([2, 1, 0, 4, 3])),
        torch.tensor([[0, 2], [3, 4]]),
        np.array([[0, 2], [3, 4]]),
        [np.array([0, 2]), torch.tensor([3, 4])],
    ],
    ids=lambda pairs: type(pairs).__name__,
)
def test_forms_of_pairs(pairs: Any) -> None:
    assert mirror_order(pairs, 5) == [2, 1, 0, 4, 3]


def test_no_pairs_swap_nothing() -> None:
    assert mirror_order((), 3) == [0, 1, 2]
    assert mirror_order([], 0) == []
    assert mirror_order(torch.zeros(0, 2), 2) == [0, 1]


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (None, "accepted are pairs"),
        (7, "accepted are pairs"),
        ({0: 1}, "accepted are pairs"),
        ([0.0, 1.0, 2.0], "accepted are pairs"),
        ([(0, 1, 2)], "accepted are pairs"),
        ([(0, "1")], "accepted are pairs"),
        ([(1, 1)], "accepted are pairs"),
        ([0, (1, 2)], "accepted are pairs"),
        ([(0, 1), None], "accepted are pairs"),
        ([[0, 1], [1, 2]], "more than once"),
        ([(0, 3)], "3 channels"),
        ([(-1, 0)], "3 channels"),
        ([0, 2], "each of the network's 3 channels"),
        ([1, 2, 0], "each of the network's 3 channels"),
        ([0, 0, 0], "each of the network's 3 channels"),
        ([0, 1, -1], "each of the network's 3 channels"),
        ("coco", "17 keypoints; the network has 3"),
        ("lfw", "accepted are coco, mpii, wflw, 300w, cofw, aflw"),
        ("", "accepted are coco"),
    ],
)
def test_what_is_no_pairing(pairs: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        mirror_order(pairs, 3)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("method", "shift"), [("msra", True), ("dark", True), ("udp", False), ("face", False)])
def test_the_shift_is_what_fits_best(method: str, shift: bool) -> None:
    """Targets of mirrored points, brought back, lie nearest to the points' own with the shift that is chosen.

    A mirror takes pixel x of an input to W - 1 - x.
    """
    assert needs_shift(method) is shift
    offsets = torch.arange(0.125, 4, 0.25)
    points = torch.stack([96 + offsets, 120 + offsets], dim=1)[None]
    mirrored = points.clone()
    mirrored[..., 0] = 191 - points[..., 0]
    size, maps = (256, 192), (64, 48)
    own, _ = decode_keypoints(encode_keypoints(points, None, size, maps, method)[0], size, method)
    apart = {}
    for moved in (False, True):
        back = flip_back(encode_keypoints(mirrored, None, size, maps, method)[0], (), shift=moved)
        found, _ = decode_keypoints(back, size, method)
        apart[moved] = float((found - own)[..., 0].mean().abs())
    assert apart[shift] < apart[not shift]
    assert apart[shift] <= 1.01


def test_unknown_networks_are_shifted() -> None:
    assert needs_shift(None)
    with pytest.raises(InputError, match="not one of"):
        needs_shift("simcc")


@pytest.mark.parametrize("name", KEYPOINT_SETS)
def test_data_sets_are_whole(name: str) -> None:
    data = KEYPOINT_SETS[name]
    order = mirror_order(data.pairs, data.channels)
    assert mirror_order(name, data.channels) == order
    assert len(data.names) == len(set(data.names)) == data.channels
    for i, j in enumerate(order):
        swapped = data.names[i].replace("left", "#").replace("right", "left").replace("#", "right")
        assert data.names[j] == swapped or data.names == tuple(map(str, range(data.channels)))
    bones = {frozenset(bone) for bone in data.bones}
    assert {frozenset(order[i] for i in bone) for bone in bones} == bones
    assert not bones or {i for bone in bones for i in bone} == set(range(data.channels))


# Of the authors' lists and mmpose's metainfo, which agree.
COUNTS = {"coco": 8, "mpii": 6, "wflw": 44, "300w": 29, "cofw": 11, "aflw": 8}


@pytest.mark.parametrize("name", COUNTS)
def test_pairs_are_the_upstreams(name: str) -> None:
    index = golden("flip_indices")[name]
    assert mirror_order(name, len(index)) == index.tolist()
    assert len(KEYPOINT_SETS[name].pairs) == COUNTS[name]
