"""The compiled HRNetV2 head against the Python one, bit for bit: outputs, gradients, statistics, memory formats."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from hrnet_fast.implementations import OperatorImplementations, describe
from hrnet_fast.reference.blocks import BasicBlock
from hrnet_fast.training import compiled
from hrnet_fast.training.matching import unit_layers
from hrnet_fast.training.v2_head import V2HeadLayers, run_v2_head

if not describe("cpu").usable:
    pytest.skip(describe("cpu").reason, allow_module_level=True)

CPU = OperatorImplementations("cpu", "cpu")


def head(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(14, 9, 1), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 5, 1)).to(dtype)


def run(layers: nn.Sequential, xs: list[Tensor], in_extension: bool) -> Tensor:
    made = V2HeadLayers(layers, align_corners=True)
    assert made.compiled is not None
    with mock.patch.object(compiled, "has_compiled_passes", return_value=in_extension):
        return run_v2_head(made, xs, CPU)


@pytest.mark.parametrize("frozen", [False, True], ids=["all trained", "some frozen"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "autocast"])
def test_heads(dtype: str, last: bool, training: bool, frozen: bool) -> None:
    plain = head(torch.float64 if dtype == "float64" else torch.float32).train(training)
    chain = nn.Sequential(BasicBlock(8, 8, norm=nn.BatchNorm2d)).to(plain[0].weight.dtype)
    plain[0].weight.requires_grad_(not frozen)
    pair = [nn.ModuleList([chain, plain]), copy.deepcopy(nn.ModuleList([chain, plain]))]
    stored = torch.bfloat16 if dtype == "autocast" else plain[0].weight.dtype
    layout = torch.channels_last if last else torch.contiguous_format
    sizes = ((8, 8, 12), (4, 4, 6), (2, 2, 3))
    given = [torch.randn(2, *size).to(stored).contiguous(memory_format=layout) for size in sizes]
    inputs = [[x.clone().requires_grad_(not (frozen and k == 1)) for k, x in enumerate(given)] for _ in pair]
    outs = []
    for modules, xs, in_extension in zip(pair, inputs, (False, True), strict=True):
        with torch.autocast("cpu", enabled=dtype == "autocast"):
            # A map that its node can compute again is not kept.
            first = compiled.compile_chain([unit_layers(modules[0][0])]).read().run([xs[0]], "lean")[0]  # type: ignore[index,union-attr]
            outs.append(run(modules[1], [first, *xs[1:]], in_extension))  # type: ignore[arg-type]
    assert torch.equal(*outs)
    assert (outs[0].dtype, outs[0].stride()) == (outs[1].dtype, outs[1].stride())
    grad = torch.randn_like(outs[0])
    for out in outs:
        out.backward(grad)
    tensors = [[*xs, *modules.parameters()] for xs, modules in zip(inputs, pair, strict=True)]
    for a, b in zip(*tensors, strict=True):
        assert (a.grad is None) == (b.grad is None) == (not a.requires_grad)
        assert a.grad is None or (torch.equal(a.grad, b.grad) and a.grad.dtype == a.dtype)  # type: ignore[arg-type]
    assert all(map(torch.equal, pair[0].buffers(), pair[1].buffers()))


def test_a_head_is_differentiable_once() -> None:
    xs = [torch.randn(1, 14, 4, 4, requires_grad=True)]
    (dx,) = torch.autograd.grad(run(head(), xs, True).square().sum(), xs, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()
