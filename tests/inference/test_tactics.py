"""Tactics of one convolution step, each by itself against the library's convolution."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hrnet_fast.inference.execution.tactics import TACTICS, Geometry
from hrnet_fast.inference.execution.weight_store import FoldedWeight

CPU = torch.device("cpu")
RELUS = [(0, 0), (0, 12), (4, 12), (4, 8)]


@pytest.mark.parametrize("name", ["library", "onednn", "library_then_fuse_sum", "grouped_conv3x3"])
@pytest.mark.parametrize("place", ["new", "slice", "over"])
@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_tactics(name: str, place: str, relu: tuple[int, int], kernel: int, stride: int, grouped: list[int]) -> None:
    """Each by itself, on slices of larger maps: new results, results in place, and those over their residual."""
    size = (9, 7) if stride == 1 else (5, 4)
    g = Geometry((2, 5, 9, 7), (2, 12, *size), (8, 16), kernel, stride, relu, place != "new", place == "over", False)
    if not g.whole and name in ("library_then_fuse_sum", "grouped_conv3x3"):
        return
    if name == "grouped_conv3x3" and (kernel, stride) != (3, 1):
        return
    folded = FoldedWeight(torch.randn(12, 5, kernel, kernel), torch.randn(12), torch.float32, CPU)
    x = torch.randn(2, 9, 7, 8).permute(0, 3, 1, 2)[:, 2:7]
    whole = torch.randn(2, *size, 16).permute(0, 3, 1, 2)
    untouched = whole.clone()
    out = whole[:, 3:15] if place != "new" else None
    residual = None if place == "new" else out if place == "over" else torch.randn(2, *size, 12).permute(0, 3, 1, 2)
    expected = torch.nn.functional.conv2d(x, folded.weight, folded.bias, stride, kernel // 2)
    if residual is not None:
        expected = expected + residual
    expected[:, relu[0] : relu[1]].relu_()
    made = TACTICS[name].run(g, folded, x, residual, out)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(whole[:, :3], untouched[:, :3])
    assert torch.equal(whole[:, 15:], untouched[:, 15:])
    if name == "library" and out is not None and TACTICS[name].fresh(g) is False:
        assert made.data_ptr() == out.data_ptr()


TRITON_TACTICS = """
import torch
from hrnet_fast.inference.execution.weight_store import FoldedWeight
from hrnet_fast.inference.execution.tactics import TACTICS, Geometry
F = torch.nn.functional
folded = FoldedWeight(torch.randn(12, 5, 3, 3), torch.randn(12), torch.float32, torch.device("cpu"))
x = torch.randn(1, 7, 6, 8).permute(0, 3, 1, 2)[:, 2:7]
for name, stride, relu in (("strided_conv_chain", 2, (4, 12)), ("library_then_fuse_sum", 1, (0, 12))):
    size = (4, 3) if stride == 2 else (7, 6)
    for residual in (None, torch.randn(1, *size, 16).permute(0, 3, 1, 2)[:, 1:13]):
        g = Geometry((1, 5, 7, 6), (1, 12, *size), (8, 12), 3, stride, relu, residual is not None, False, True)
        expected = F.conv2d(x, folded.weight, folded.bias, stride, 1) + (0 if residual is None else residual)
        expected[:, relu[0]:relu[1]].relu_()
        made = TACTICS[name].run(g, folded, x, residual, None)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
        assert made.is_contiguous(memory_format=torch.channels_last)

from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.evaluator import evaluate
from hrnet_fast.inference.execution.torch_executor import TorchExecutor
from hrnet_fast.inference.planning.lowering import make_plan

class Fusion(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 16, 3, 2, 1)
        self.point = torch.nn.Conv2d(16, 8, 1)

    def forward(self, x):
        large = self.stem(x)
        return F.relu(large + F.interpolate(self.point(self.down(large)), size=large.shape[2:]))

model, x = Fusion().eval(), torch.randn(1, 3, 6, 8)
tensors = dict(model.named_parameters())
plan = make_plan(model, tuple(x.shape), torch.float32)
fusing = Autotuner(torch.device("cpu"), torch.float32, "upsample_conv1x1_sum")
run = TorchExecutor(plan, tensors, "cpu", autotuner=fusing)
assert len(run.groups) == len(plan.steps) - 1
torch.testing.assert_close(run(x), evaluate(plan, tensors, x), rtol=1e-4, atol=1e-4)
print("parity held")
"""


@pytest.mark.slow
@pytest.mark.processes
def test_triton_tactics_under_its_interpreter() -> None:
    """In a process of its own: whether kernels are interpreted is decided when they are defined."""
    pytest.importorskip("triton", reason="the package triton is not installed")
    done = subprocess.run(
        [sys.executable, "-c", TRITON_TACTICS],
        env={**os.environ, "TRITON_INTERPRET": "1", "HRNET_FAST_IMPL": "triton"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parity held" in done.stdout
