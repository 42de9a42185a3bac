"""Losses on CUDA, their host side: a graph of forward and backward, no waits, only operators that repeat."""

from __future__ import annotations

import device_counters
import pytest
import torch
from loss_cases import backward, loss_cases

pytestmark = pytest.mark.nulldevice


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", loss_cases())
def test_forward_and_backward_are_one_graph(name: str, dtype: torch.dtype) -> None:
    case = loss_cases()[name].to("cuda", dtype)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        with device_counters.counting() as n:
            backward(case)
        assert (n.errors, n.synchronizations, n.to_host) == (0, 0, 0)
        graph = torch.cuda.CUDAGraph()
        with device_counters.counting() as n, torch.cuda.graph(graph):
            backward(case)
    assert (n.errors, n.stray_operations, n.captures_invalidated) == (0, 0, 0)
    with device_counters.counting() as n:
        graph.replay()
    assert (n.launches, n.graph_launches) == (0, 1)


@pytest.mark.parametrize("name", loss_cases())
def test_no_operator_is_listed_as_not_deterministic(name: str) -> None:
    """PyTorch raises for each before it launches it, as for its own backward of bilinear interpolation."""
    case = loss_cases()[name].to("cuda", torch.float32)
    torch.use_deterministic_algorithms(True)
    backward(case)
    small = torch.zeros(1, 1, 4, 4, device="cuda", requires_grad=True)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.ops.aten.upsample_bilinear2d(small, [8, 8], False).sum().backward()
