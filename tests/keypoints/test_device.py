"""Decoding and encoding on a device: the CPU's numbers, in a captured graph."""

from __future__ import annotations

import pytest
import torch
from golden_keypoints import golden
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.keypoints import METHODS


@pytest.mark.device
@pytest.mark.parametrize("method", METHODS)
def test_a_captured_graph_gives_the_cpus_numbers(method: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    data = golden("keypoints")
    points, maps = data["joints"][None], data["heatmaps"]

    def step(points: Tensor, visible: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        encoded = hf.encode_keypoints(points, visible, (64, 48), (16, 12), method)
        return *encoded, *hf.decode_keypoints(maps, (64, 48), method)

    given = (points, torch.ones(points.shape[:2]), maps)
    there = tuple(t.cuda() for t in given)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(*there)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*there)
    graph.replay()
    expected = step(*given)
    torch.cuda.synchronize()
    for index, (found, wanted) in enumerate(zip(captured, expected, strict=True)):
        if index == 0:
            assert torch.equal(found.cpu(), wanted)
        else:
            torch.testing.assert_close(found.cpu(), wanted, atol=1e-4, rtol=0)


def test_nothing_waits_for_a_value() -> None:
    """On the meta device there are no values: whatever asked for one would fail."""
    for method in METHODS:
        targets, weights = hf.encode_keypoints(torch.zeros(2, 3, 2, device="meta"), None, (64, 48), (16, 12), method)
        assert (targets.shape, weights.shape) == ((2, 3, 16, 12), (2, 3))
        points, values = hf.decode_keypoints(targets, (64, 48), method)
        assert (points.shape, values.shape, points.device.type) == ((2, 3, 2), (2, 3), "meta")
